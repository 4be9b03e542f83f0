// What runs: phase, step, loss, Dice, time left; then what the audit said.
import { openDialog, showReport } from "./actions";
import { address } from "./api";
import { authorization } from "./host";
import { Act } from "./parts";
import { React } from "./react";
import { useStore } from "./store";
import type { Audit, Run } from "./types";
import { NOT_ADMIN, RUN_NAMES, duration, isStoppable, when } from "./words";

const FIGURES: [string, string][] = [
  ["loss", "Loss"],
  ["forget_dice", "Dice, to be forgotten"],
  ["retain_dice", "Dice, retained"],
  ["calibration_dice", "Dice, never seen"],
];

const TONE: Record<string, string> = {
  done: "good", failed: "bad", interrupted: "bad", refused: "warn", cancelled: "plain",
};

function Running({ run }: { run: Run }): JSX.Element {
  const admin = useStore((s) => s.me?.may_decide ?? false);
  const p = run.progress;
  return (
    <div data-cy="sul-run" data-run={run.run_id} data-state={run.state} data-phase={p?.phase ?? ""}
      data-step={p?.step ?? 0}>
      <p><strong>{RUN_NAMES[run.kind] ?? run.kind}</strong>: {p?.phase ?? "begins"}</p>
      <progress max={1} value={p?.total ? p.fraction : undefined} aria-label="Progress of this phase" />
      <dl>
        {p?.total ? <React.Fragment><dt>Step</dt><dd>{p.step} of {p.total}</dd></React.Fragment> : null}
        {FIGURES.map(([key, label]) => {
          const value = p?.metrics[key];
          return value === undefined ? null : (
            <React.Fragment key={key}>
              <dt>{label}</dt><dd data-cy={`sul-${key}`}>{value.toFixed(3)}</dd>
            </React.Fragment>
          );
        })}
        {p?.eta_seconds == null ? null : (
          <React.Fragment>
            <dt>Left of this phase</dt><dd data-cy="sul-eta">{duration(p.eta_seconds)}</dd>
          </React.Fragment>
        )}
      </dl>
      {run.cancel_requested ? <p className="warn">It was asked to stop.</p> : !isStoppable(run) ? null : (
        <Act label="Stop…" why={admin ? undefined : NOT_ADMIN}
          act={() => openDialog({ kind: "cancel", run })} />
      )}
    </div>
  );
}

function Ended({ run }: { run: Run }): JSX.Element {
  const lines = run.parameters["lines"];
  return (
    <div data-cy="sul-last-run" data-run={run.run_id} data-state={run.state}>
      <p className="words">
        <strong>{RUN_NAMES[run.kind] ?? run.kind}</strong>{" "}
        <span className={TONE[run.state]}>{run.state}</span>{" "}
        <span className="soft">{when(run.ended ?? run.started)}</span>
      </p>
      {run.message ? <p className="words">{run.message}</p> : null}
      {Array.isArray(lines) ? (
        <ul>{lines.map((line, i) => <li key={i} className="soft words">{String(line)}</li>)}</ul>
      ) : null}
    </div>
  );
}

const VERDICTS: Record<Audit["outcome"], [string, string]> = {
  passed: ["good", "passed"],
  refused: ["bad", "refused: the old version serves on"],
  inconclusive: ["warn", "inconclusive: not enough could be shown, the old version serves on"],
  damaged: ["bad", "damaged: its files are not as they were signed"],
};

function AuditLine({ audit }: { audit: Audit }): JSX.Element {
  const [tone, words] = VERDICTS[audit.outcome] ?? ["warn", audit.outcome];
  const looks = useStore((s) => s.looking.includes(audit.audit_id));
  const signedIn = Object.keys(authorization()).length > 0;
  return (
    <li className="sul-row" data-cy="sul-audit" data-audit={audit.audit_id} data-outcome={audit.outcome}>
      <p className="words"><strong className={tone}>{words}</strong></p>
      <p className="soft words">
        {audit.original} → {audit.candidate}, {audit.persons} {audit.persons === 1 ? "person" : "people"}, reached: {audit.reached},
        needed: {audit.needed}; {when(audit.created)}
      </p>
      {audit.message ? <p className="words">{audit.message}</p> : null}
      {signedIn ? (
        <Act label={looks ? "Working …" : "Report"} act={() => void showReport(audit.audit_id)}
          why={looks ? "The report is being fetched." : undefined} />
      ) : (
        <a className="act" href={address(`audits/${audit.audit_id}/report`)} target="_blank"
          rel="noopener" data-cy="sul-report">Report<span className="sul-hidden"> (new tab)</span></a>
      )}
    </li>
  );
}

export function RunSection(): JSX.Element {
  const runs = useStore((s) => s.runs);
  const pending = useStore((s) => s.pending);
  const audits = useStore((s) => s.audits);
  const running = runs.filter((r) => r.state === "running" && r.kind !== "audit");
  const last = runs.find((r) => r.state !== "running" && r.kind !== "audit");
  return (
    <section aria-label="Runs and audits" data-cy="sul-runs" id="segunlearn-runs">
      <h2>Runs and audits</h2>
      {pending ? (
        <React.Fragment>
          <p>{pending.words} …</p><progress aria-label="Waiting for the work to begin" />
        </React.Fragment>
      ) : null}
      {running.map((r) => <Running key={r.run_id} run={r} />)}
      {last && !running.length && !pending ? <Ended run={last} /> : null}
      {!runs.length && !pending ? <p className="soft">Nothing ran yet.</p> : null}
      {audits.length ? <h3>Audits, newest first</h3> : null}
      <ul>{audits.map((a) => <AuditLine key={a.audit_id} audit={a} />)}</ul>
    </section>
  );
}
