// The study that is shown: its state, its series, and marking.
import { openDialog } from "./actions";
import { patientTarget, seriesTarget, studyTarget, whose } from "./active";
import { Compare } from "./compare";
import { Act, Chip } from "./parts";
import { React } from "./react";
import { get, setSupport, useStore } from "./store";
import type { About, Series } from "./store";
import type { Cover, ForgetRequest, Me, Status } from "./types";
import { KINDS, NOT_MARKER, REASONS, WITHDRAWABLE, shortId, whoOf } from "./words";

function Covers({ covers }: { covers: Cover[] }): JSX.Element {
  return (
    <React.Fragment>
      {covers.map((cover) => (
        <p key={cover.request_id} className="words">
          <Chip about={cover} />{" "}
          {cover.target_kind === "study" ? "" : `by a mark on the ${KINDS[cover.target_kind]}: `}
          {REASONS[cover.reason]}
        </p>
      ))}
    </React.Fragment>
  );
}

/** The request of a target of its own that can still be taken back. */
function withdrawable(covers: Cover[] | undefined, kind: string): ForgetRequest | undefined {
  const own = covers?.find(
    (c) => c.target_kind === kind && WITHDRAWABLE.includes(c.state),
  );
  return own && get().requests.find((r) => r.request_id === own.request_id);
}

function whyNotMark(me: Me | null): string | undefined {
  if (!me) return "The server has not said yet who you are.";
  return me.may_mark ? undefined : NOT_MARKER;
}

export function whyNotWithdraw(request: ForgetRequest): string | undefined {
  const me = get().me;
  if (!me?.may_mark) return whyNotMark(me);
  if (!me.may_decide && (request.agreed_by || request.marked_by) !== me.name)
    return `Marked by ${whoOf(request)}: only they or an administrator may take it back.`;
  return undefined;
}

function Item({ series, status, shown, of }: {
  series: Series; status: Status | undefined; shown: boolean; of: About;
}): JSX.Element {
  const me = useStore((s) => s.me);
  const support = useStore((s) => s.support);
  const own = withdrawable(status?.covers, "series");
  const inSupport = support.some((s) => s.uid === series.uid);
  const covered = status?.covers.find((c) => c.target_kind !== "series");
  return (
    <li className="sul-row" data-cy="sul-series" data-uid={series.uid} data-marked={!!status?.marked}>
      <div className="words">{series.words}{shown ? <span className="soft"> (shown)</span> : null}</div>
      <div className="id" title={series.uid}>{shortId(series.uid)}</div>
      {status?.marked ? (
        <p>
          <Chip about={status.covers[0] as Cover} />{" "}
          {covered ? <span className="soft">covered by the {KINDS[covered.target_kind]}</span> : null}
        </p>
      ) : null}
      {own ? (
        <Act label="Withdraw mark" about={series.words} why={whyNotWithdraw(own)}
          act={() => openDialog({ kind: "withdraw", request: own })} />
      ) : null}
      {status?.marked ? null : (
        <Act label="Mark series…" name="sul-mark-series" about={series.words}
          why={whyNotMark(me)}
          act={() => openDialog({ kind: "mark", target: seriesTarget(series.uid, series.words, of) })} />
      )}
      {inSupport ? null : (
        <Act label="Use for adapting" about={series.words}
          why={status?.marked ? "It is marked for forgetting: nothing is adapted to it." : undefined}
          act={() => setSupport([...get().support, series])} />
      )}
    </li>
  );
}

export function StudySection(): JSX.Element {
  const active = useStore((s) => s.active);
  const status = useStore((s) => s.status);
  const me = useStore((s) => s.me);
  const fault = useStore((s) => s.statusFault);
  if (!active)
    return (
      <section aria-label="This study"><h2>This study</h2>
        <p className="soft">No study is open. Open one to mark it.</p>
      </section>
    );
  const here = status[active.study];
  const own = withdrawable(here?.covers, "study");
  const why = whyNotMark(me);
  const study = studyTarget();
  const patient = patientTarget();
  return (
    <section aria-label="This study" data-cy="sul-study" data-marked={!!here?.marked}>
      <h2>This study</h2>
      <p className="words"><strong>{active.words}</strong></p>
      <p className="words soft">{whose(active)}</p>
      {fault ? <p className="bad words">{fault}</p> : null}
      {here?.marked ? <Covers covers={here.covers} /> : null}
      {here?.proposals.length ? <Covers covers={here.proposals} /> : null}
      {here && !here.marked ? <p className="soft">Not marked: training may use it.</p> : null}
      {here && !here.marked && here.series_marked ? (
        <p className="warn">{here.series_marked} of its series marked.</p>
      ) : null}
      {study && !here?.covers.some((c) => c.target_kind === "study") ? (
        <Act label="Mark study…" look="main" name="sul-mark-study" why={why}
          act={() => openDialog({ kind: "mark", target: study })} />
      ) : null}
      {patient && !here?.covers.some((c) => c.target_kind === "patient") ? (
        <Act label="Mark patient…" name="sul-mark-patient" why={why}
          act={() => openDialog({ kind: "mark", target: patient })} />
      ) : null}
      {own ? (
        <Act label="Withdraw mark" name="sul-withdraw-study" why={whyNotWithdraw(own)}
          act={() => openDialog({ kind: "withdraw", request: own })} />
      ) : null}
      <Compare />
      <h3>Series</h3>
      <ul>
        {active.series.map((s) => (
          <Item key={s.uid} series={s} status={status[s.uid]} shown={s.uid === active.shown}
            of={active} />
        ))}
      </ul>
    </section>
  );
}
