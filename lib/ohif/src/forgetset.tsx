// The forget set: search, states, who and when, and what an administrator can do with a request.
import { openDialog } from "./actions";
import { Act, Chip } from "./parts";
import { React } from "./react";
import { useDraft, useStore } from "./store";
import { whyNotWithdraw } from "./study";
import type { ForgetRequest } from "./types";
import { KINDS, NOT_ADMIN, REASONS, STATES, lawOf, shortId, when } from "./words";

const FIRST = 10;

function matches(request: ForgetRequest, text: string): boolean {
  const found = [
    request.target.id, request.target.kind, request.study, request.marked_by, request.note,
    REASONS[request.reason], STATES[request.state], request.request_id,
  ].join(" ").toLowerCase();
  return text.toLowerCase().split(/\s+/).every((word) => found.includes(word));
}

function Actions({ request }: { request: ForgetRequest }): JSX.Element {
  const admin = useStore((s) => s.me?.may_decide ?? false);
  const works = useStore((s) => s.runs.some((r) => r.state === "running" && r.kind === "unlearn"));
  const why = admin ? undefined : NOT_ADMIN;
  const busy = why ?? (works ? "An unlearning runs. Wait for its end, or stop it." : undefined);
  const about = `${KINDS[request.target.kind]} ${shortId(request.target.id)}`;
  const { state } = request;
  const structure = request.target.kind === "structure"
    ? "A structure is taken out by a training without its label." : undefined;
  return (
    <div>
      {state === "requested" || state === "proposed" ? (
        <Act label="Approve…" name="sul-approve" why={why} about={about}
          act={() => openDialog({ kind: "approve", request })} />
      ) : null}
      {state === "proposed" ? (
        <Act label="Dismiss…" why={why} about={about}
          act={() => openDialog({ kind: "dismiss", request })} />
      ) : null}
      {state === "approved" || state === "refused" ? (
        <Act label="Unlearn…" name="sul-unlearn" why={structure ?? busy} about={about}
          act={() => openDialog({ kind: "unlearn", requests: [request] })} />
      ) : null}
      {state === "fulfilled" ? (
        <React.Fragment>
          <Act label="Restore…" name="sul-restore" why={busy} about={about}
            act={() => openDialog({ kind: "restore", request })} />
          <Act label="Purge…" look="danger" name="sul-purge" why={busy} about={about}
            act={() => openDialog({ kind: "purge", request })} />
        </React.Fragment>
      ) : null}
      {state === "requested" || state === "approved" ? (
        <Act label="Withdraw" name="sul-withdraw" about={about} why={whyNotWithdraw(request)}
          act={() => openDialog({ kind: "withdraw", request })} />
      ) : null}
    </div>
  );
}

function Row({ request }: { request: ForgetRequest }): JSX.Element {
  return (
    <li className="sul-row" data-cy="sul-request" data-id={request.request_id} data-state={request.state}
      data-target={request.target.id}>
      <div className="words">
        <Chip state={request.state} /> <strong>{KINDS[request.target.kind]}</strong>{" "}
        {REASONS[request.reason]}
      </div>
      <div className="id" title={request.target.id}>{shortId(request.target.id)}</div>
      {request.note ? <p className="words">{request.note}</p> : null}
      <p className="soft words">
        {request.marked_by}, {when(request.created)}; needed: {request.needed}, reached:{" "}
        {request.reached}
      </p>
      <p className="soft">{lawOf(request)}</p>
      <Actions request={request} />
    </li>
  );
}

export function ForgetSection(): JSX.Element {
  const requests = useStore((s) => s.requests);
  const total = useStore((s) => s.total);
  const admin = useStore((s) => s.me?.may_decide ?? false);
  const [text, setText] = useDraft("search");
  const [open, setOpen] = useDraft("search-open");
  const [count, setCount] = React.useState(FIRST);
  const found = requests.filter(
    (r) => (!open || r.state === open) && (!text.trim() || matches(r, text.trim())),
  );
  const approved = requests.filter((r) => r.state === "approved" && r.target.kind !== "structure");
  return (
    <section aria-label="Forget set" data-cy="sul-forget-set">
      <h2>Forget set <span className="soft">({total})</span></h2>
      <label>Search<input type="search" value={text} data-cy="sul-search" autoComplete="off"
        onChange={(e) => setText(e.target.value)} /></label>
      <label>State<select value={open} onChange={(e) => setOpen(e.target.value)}>
        <option value="">all</option>
        {Object.entries(STATES).map(([key, words]) => <option key={key} value={key}>{words}</option>)}
      </select></label>
      {approved.length > 1 ? (
        <Act label={`Unlearn all ${approved.length} approved…`} name="sul-unlearn-all"
          why={admin ? undefined : NOT_ADMIN}
          act={() => openDialog({ kind: "unlearn", requests: approved })} />
      ) : null}
      {found.length ? null : (
        <p className="soft">{requests.length ? "Nothing matches." : "Nothing is marked."}</p>
      )}
      <ul>{found.slice(0, count).map((r) => <Row key={r.request_id} request={r} />)}</ul>
      {found.length > count ? (
        <Act label={`Show ${found.length - count} more`} act={() => setCount(count + 50)} />
      ) : null}
      {total > requests.length ? (
        <p className="soft">The newest {requests.length} of {total}; the command line lists all.</p>
      ) : null}
    </section>
  );
}
