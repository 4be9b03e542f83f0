// The dialogs. Each says in plain words what becomes of the data; what is grave asks for a word.
import * as actions from "./actions";
import { focusBack } from "./focus";
import { useDraft, useStore } from "./store";
import type { Dialog, Target } from "./store";
import { Act, Fault, Field, SignIn } from "./parts";
import { React } from "./react";
import { themeOf } from "./style";
import type { ForgetRequest, Reason } from "./types";
import * as words from "./words";

interface FrameProps {
  title: string;
  says?: readonly string[];
  children?: React.ReactNode;
  wide?: boolean;
}

/** A native modal dialog: in front of everything, with Escape and a closed round of Tab. */
function Frame({ title, says = [], children, wide }: FrameProps): JSX.Element {
  const ref = React.useRef<HTMLDialogElement>(null);
  const before = React.useRef(document.activeElement as HTMLElement | null); // autoFocus moves it
  React.useEffect(() => {
    const element = ref.current;
    if (element && !element.open) element.showModal();
    // a menu of the host that still fades would take Escape from the browser, which closes for us
    const own = (e: KeyboardEvent): void => { if (e.key === "Escape") e.stopPropagation(); };
    window.addEventListener("keydown", own, true);
    return () => {
      window.removeEventListener("keydown", own, true);
      focusBack(before.current);
    };
  }, []);
  return (
    <dialog ref={ref} className={`sul-dialog${wide ? " wide" : ""}`} aria-label={title}
      data-cy="sul-dialog" data-theme={themeOf(document.querySelector(".sul"))}
      onCancel={(e) => { e.preventDefault(); actions.cancelDialog(); }} onClose={actions.closeDialog}
      onKeyDown={(e) => e.stopPropagation()}>
      <h2>{title}</h2>
      <Says lines={says} />
      {children}
    </dialog>
  );
}

const Says = ({ lines }: { lines: readonly string[] }): JSX.Element | null =>
  lines.length ? <ol>{lines.map((s) => <li key={s}>{s}</li>)}</ol> : null;

interface EndsProps {
  label: string;
  act: () => void;
  /** Word that must be typed. */
  typed?: string;
  look?: "main" | "danger";
  why?: string | undefined;
  children?: React.ReactNode;
}

function Ends({ label, act, typed, look = "main", why, children }: EndsProps): JSX.Element {
  const busy = useStore((s) => s.busy);
  const expired = useStore((s) => s.server === "expired");
  const [text, setText] = React.useState("");
  const reason = busy ? "It is being done."
    : why ?? (typed && text.trim().toLowerCase() !== typed ? `Type “${typed}” first.` : undefined);
  return (
    <React.Fragment>
      {typed ? (
        <label>
          To confirm, type <strong>{typed}</strong>
          <input type="text" value={text} autoComplete="off" spellCheck={false}
            data-cy="sul-typed" onChange={(e) => setText(e.target.value)} />
        </label>
      ) : null}
      <Fault />
      {expired ? <p className="warn">Your session has expired. <SignIn /></p> : null}
      <div className="ends">
        {children}
        <Act label="Cancel" name="sul-cancel" act={actions.cancelDialog}
          why={busy ? "It is being done, and cannot be cancelled here." : undefined} />
        <Act label={busy ? "Working …" : label} look={look} name="sul-confirm" why={reason} act={act} />
      </div>
    </React.Fragment>
  );
}

function MarkDialog({ target }: { target: Target }): JSX.Element {
  const own = `${target.kind}-${target.id}`;
  const [reason, setReason] = useDraft(`reason-${own}`);
  const [note] = useDraft(`note-${own}`);
  const [unknown, setUnknown] = React.useState(false);
  const fault = useStore((s) => s.fault);
  const why = !reason ? "Choose a reason first."
    : reason === "other" && !note.trim() ? "Say in the note what the other reason is." : undefined;
  return (
    <Frame title={`Mark this ${words.KINDS[target.kind]} for forgetting`} says={words.MARKING}>
      <p className="words"><strong>{target.words}</strong></p>
      {target.whose ? <p className="words">{target.whose}</p> : null}
      <p className="id" title={target.id}>{words.shortId(target.id)}</p>
      {target.kind === "patient" ? (
        <p>All studies of this patient are covered, those that arrive later too.</p>
      ) : null}
      <label>Reason
        <select value={reason} data-cy="sul-reason" autoFocus onChange={(e) => setReason(e.target.value)}>
          <option value="">choose …</option>
          {Object.entries(words.REASONS).map(([key, w]) => <option key={key} value={key}>{w}</option>)}
        </select>
      </label>
      <Field draft={`note-${own}`} label="Note (no names of patients)" name="sul-note" rows />
      {fault.includes("even_if_unknown") || unknown ? (
        <label className="inline">
          <input type="checkbox" checked={unknown} data-cy="sul-unknown"
            onChange={(e) => setUnknown(e.target.checked)} />{" "}
          Mark it although the archive does not hold it (any more)
        </label>
      ) : null}
      <Ends label="Mark" why={why} act={() =>
        void actions.mark(target, reason as Reason, note, unknown, [`reason-${own}`, `note-${own}`])} />
    </Frame>
  );
}

function What({ request }: { request: ForgetRequest }): JSX.Element {
  const state = useStore((s) => words.stateOf(request, s.runs));
  return (
    <p className="words">
      <strong>{words.KINDS[request.target.kind]} {words.shortId(request.target.id)}</strong>:{" "}
      {words.reasonOf(request)}, {state}
    </p>
  );
}

/** What is not in the list is named by its id alone. */
function Named({ id, becomes = "" }: { id: string; becomes?: string }): JSX.Element {
  const request = useStore((s) => s.requests.find((r) => r.request_id === id));
  return (
    <li data-id={id}>
      {request ? <What request={request} /> : <p>request <span className="id">{id}</span></p>}
      {becomes ? <p className="soft words">{becomes}</p> : null}
    </li>
  );
}

const Why = ({ id }: { id: string }): JSX.Element =>
  <Field draft={`why-${id}`} label="Why (optional)" name="sul-why" rows />;

/** While the server is asked, and the way to ask again. */
function Asking({ again }: { again: () => void }): JSX.Element {
  const asking = useStore((s) => s.asking);
  if (asking) return <p className="soft">The server looks what it would do …</p>;
  return <Act label="Ask the server again" act={again} />;
}

function whyNotYet(known: boolean, asking: boolean): string | undefined {
  if (known) return undefined;
  return asking ? "The server has not answered yet what it would do."
    : "The server gave no answer to act on; see above.";
}

/** Versions and other requests that a purge takes along. */
function Lost({ request }: { request: ForgetRequest }): JSX.Element {
  const found = useStore((s) => s.wouldPurge);
  const look = (): void => void actions.loadPurge(request);
  React.useEffect(look, [request.request_id]);
  if (!found) return <Asking again={look} />;
  return (
    <div data-cy="sul-lost">
      <p className="words">To be destroyed: the key, {found.destroyed.join(", ") || "no version"}.</p>
      {found.requests.length ? (
        <React.Fragment>
          <p className="bad words">{words.LOSING}</p>
          <ul>{found.requests.map((id) => <Named key={id} id={id} />)}</ul>
        </React.Fragment>
      ) : null}
    </div>
  );
}

function Purge({ request, text }: { request: ForgetRequest; text: string }): JSX.Element {
  const known = useStore((s) => s.wouldPurge !== null);
  const asking = useStore((s) => s.asking);
  return (
    <Ends label="Purge" look="danger" typed="purge" why={whyNotYet(known, asking)}
      act={() => void actions.purge(request, text)} />
  );
}

function Simple({ dialog }: {
  dialog: Extract<Dialog, { request: ForgetRequest }>;
}): JSX.Element {
  const { request } = dialog;
  const [text] = useDraft(`why-${request.request_id}`);
  const again = useStore((s) => s.again);
  const note = <Why id={request.request_id} />;
  switch (dialog.kind) {
    case "approve":
      return (
        <Frame title="Approve this request" says={words.APPROVING}>
          <What request={request} />
          <Ends label="Approve" typed="approve" act={() => void actions.approve(request)} />
        </Frame>
      );
    case "withdraw":
      return (
        <Frame title="Withdraw this mark" says={words.WITHDRAWING}>
          <What request={request} />{note}
          <Ends label="Withdraw mark" act={() => void actions.withdraw(request, text)} />
        </Frame>
      );
    case "dismiss":
      return (
        <Frame title="Dismiss this proposal">
          <What request={request} />{note}
          <Ends label="Dismiss" act={() => void actions.dismiss(request, text)} />
        </Frame>
      );
    case "restore":
      return (
        <Frame title="Restore what was forgotten" says={words.RESTORING}>
          <What request={request} />{note}
          <Ends label="Restore" typed="restore" act={() => void actions.restore(request, text)}>
            {again ? (
              <Act label="Restore and forget the others again…" act={() =>
                actions.openDialog({ kind: "unlearn", requests: [], restore: request.request_id })} />
            ) : null}
          </Ends>
        </Frame>
      );
    case "purge":
      return (
        <Frame title="Purge: erase for good" says={words.PURGING}>
          <What request={request} />
          <Lost request={request} />{note}
          <Purge request={request} text={text} />
        </Frame>
      );
  }
}

function UnlearnDialog({ requests, restore = "" }: {
  requests: ForgetRequest[]; restore?: string;
}): JSX.Element {
  const plan = useStore((s) => s.plan);
  const asking = useStore((s) => s.asking);
  const [method, setMethod] = useDraft("method");
  const [quick, setQuick] = React.useState(false);
  const look = (): void => void actions.loadPlan(requests, restore, method);
  React.useEffect(look, [method]);
  const first = restore ? [restore] : requests.map((r) => r.request_id);
  const planned = plan?.requests ?? first.map((id) => ({ id, what: "" }));
  const start = (dry: boolean): void =>
    void actions.unlearn(requests, { dry_run: dry, method, quick, restore });
  return (
    <Frame title={restore ? "Restore, and forget the others again" : "Unlearn"}
      says={restore ? words.RESTORING : words.UNLEARNING}>
      <ul>{planned.map((p) => <Named key={p.id} id={p.id} becomes={p.what} />)}</ul>
      {restore ? (
        <React.Fragment>
          <p>Of what stays forgotten:</p>
          <Says lines={words.UNLEARNING} />
          <Why id={restore} />
        </React.Fragment>
      ) : null}
      <label>Method
        <select value={method} data-cy="sul-method" onChange={(e) => setMethod(e.target.value)}>
          <option value="">the usual one for the level{plan ? ` “${plan.level}”` : ""}</option>
          {[...new Set([...(method ? [method] : []), ...(plan?.ways ?? []).map((w) => w.method)])].map(
            (m) => (
              <option key={m} value={m}>
                {m.replace(/_/g, " ")}{m === plan?.recommended ? " (advised)" : ""}
              </option>
            ),
          )}
        </select>
      </label>
      <label className="inline">
        <input type="checkbox" checked={quick} data-cy="sul-quick"
          onChange={(e) => setQuick(e.target.checked)} />{" "}
        Quick audit: fewer and shorter attacks; the report says what is left out
      </label>
      {plan && !asking ? (
        <ul className="soft sul-plan" data-cy="sul-plan">
          {plan.lines.map((line, i) => <li key={i} className="words">{line}</li>)}
        </ul>
      ) : <Asking again={look} />}
      <Ends label={restore ? "Restore" : "Unlearn"} typed={restore ? "restore" : "unlearn"}
        why={whyNotYet(plan !== null && !asking, asking)} act={() => start(false)}>
        <Act label="Dry run" name="sul-dry-run" act={() => start(true)} />
      </Ends>
    </Frame>
  );
}

function AdaptDialog(): JSX.Element {
  const support = useStore((s) => s.support);
  const [one, setOne] = React.useState(false);
  return (
    <Frame title={`Adapt with these ${support.length} series`} says={words.ADAPTING}>
      <ul>
        {support.map((s) => (
          <li key={s.uid} className="words">
            {s.words} <span className="id" title={s.uid}>{words.shortId(s.uid)}</span>
          </li>
        ))}
      </ul>
      <label className="inline">
        <input type="checkbox" checked={one} onChange={(e) => setOne(e.target.checked)} />{" "}
        They show one person: adopt it although nobody can be held out
      </label>
      <Ends label="Adapt" typed="adapt" act={() => void actions.adapt(true, one)}>
        <Act label="Dry run" act={() => void actions.adapt(false, one)} />
      </Ends>
    </Frame>
  );
}

export function Dialogs(): JSX.Element | null {
  const dialog = useStore((s) => s.dialog);
  if (!dialog) return null;
  switch (dialog.kind) {
    case "mark":
      return <MarkDialog key={dialog.target.id} target={dialog.target} />;
    case "unlearn":
      return <UnlearnDialog requests={dialog.requests} restore={dialog.restore ?? ""} />;
    case "adapt":
      return <AdaptDialog />;
    case "rollback":
      return (
        <Frame title="Roll the site’s adapter back" says={words.ROLLING_BACK}>
          <p className="words"><strong>{dialog.adapter.site}</strong> {dialog.adapter.version}</p>
          <Ends label="Roll back" act={() => void actions.rollBack(dialog.adapter.key)} />
        </Frame>
      );
    case "cancel":
      return (
        <Frame title="Stop this run" says={[words.stopping(dialog.run)]}>
          <Ends label="Stop" act={() => void actions.cancel(dialog.run)} />
        </Frame>
      );
    case "report":
      return (
        <Frame title="Audit report" wide>
          <iframe title="Audit report" sandbox="" srcDoc={dialog.html} />
          <div className="ends"><Act label="Close" act={actions.closeDialog} /></div>
        </Frame>
      );
    default:
      return <Simple key={dialog.kind + dialog.request.request_id} dialog={dialog} />;
  }
}

