// The forget set: search, states, who and when, and what an administrator can do with a request.
import { lastStep, openDialog } from "./actions";
import { Act, Chip } from "./parts";
import { React } from "./react";
import { useDraft, useStore } from "./store";
import { whyNotWithdraw } from "./study";
import type { ForgetRequest, Run } from "./types";
import {
  KINDS, NOT_ADMIN, STATES, WITHDRAWABLE, isUnlearned, lawOf, reasonOf, shortId, standingOf, stateOf,
  when, whoOf,
} from "./words";

const FIRST = 10;
const LONGEST = 300;
const WORKS = "An unlearning runs. Wait for its end, or stop it.";

function matches(request: ForgetRequest, text: string, runs: readonly Run[]): boolean {
  const found = [
    request.target.id, request.target.kind, request.study, whoOf(request), request.note,
    reasonOf(request), stateOf(request, runs), request.request_id,
  ].join(" ").toLowerCase();
  return text.toLowerCase().split(/\s+/).every((word) => found.includes(word));
}

function Actions({ request }: { request: ForgetRequest }): JSX.Element {
  const admin = useStore((s) => s.me?.may_decide ?? false);
  const works = useStore((s) => s.runs.some((r) => r.state === "running" && r.kind === "unlearn"));
  const why = admin ? undefined : NOT_ADMIN;
  const busy = why ?? (works ? WORKS : undefined);
  const about = `${KINDS[request.target.kind]} ${shortId(request.target.id)}`;
  const { state } = request;
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
      {state === "approved" || state === "working" || state === "refused" ? (
        <Act label="Unlearn…" name="sul-unlearn" why={busy} about={about}
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
      {WITHDRAWABLE.includes(state) ? (
        <Act label="Withdraw" name="sul-withdraw" about={about} why={whyNotWithdraw(request)}
          act={() => openDialog({ kind: "withdraw", request })} />
      ) : null}
    </div>
  );
}

/** Why something that was tried is not forgotten, in the words of its newest step. */
function Tried({ request }: { request: ForgetRequest }): JSX.Element | null {
  const runs = useStore((s) => isUnlearned(request.request_id, s.runs));
  const [why, tell] = React.useState("");
  React.useEffect(() => {
    let left = false;
    void lastStep(request).then((found) => { if (!left) tell(found); });
    return () => { left = true; };
  }, [request.request_id, request.updated]);
  if (runs || !why) return null;
  const short = why.length > LONGEST ? `${why.slice(0, LONGEST)} …` : why;
  return <p className="words" title={why} data-cy="sul-tried">{short}</p>;
}

function Row({ request }: { request: ForgetRequest }): JSX.Element {
  return (
    <li className="sul-row" data-cy="sul-request" data-id={request.request_id} data-state={request.state}
      data-target={request.target.id}>
      <div className="words">
        <Chip about={request} /> <strong>{KINDS[request.target.kind]}</strong>{" "}
        {reasonOf(request)}
      </div>
      <div className="id" title={request.target.id}>{shortId(request.target.id)}</div>
      {request.note ? <p className="words">{request.note}</p> : null}
      <p className="soft words">
        {whoOf(request)}, {when(request.created)}; needed: {request.needed}, reached:{" "}
        {request.reached}
      </p>
      {request.state === "refused" || request.state === "working" ? <Tried request={request} /> : null}
      <p className="soft">{lawOf(request)}</p>
      <Actions request={request} />
    </li>
  );
}

export function ForgetSection(): JSX.Element {
  const requests = useStore((s) => s.requests);
  const total = useStore((s) => s.total);
  const runs = useStore((s) => s.runs);
  const admin = useStore((s) => s.me?.may_decide ?? false);
  const [text, setText] = useDraft("search");
  const [open, setOpen] = useDraft("search-open");
  const [count, setCount] = React.useState(FIRST);
  const found = requests.filter(
    (r) => (!open || standingOf(r) === open) && (!text.trim() || matches(r, text.trim(), runs)),
  );
  const waiting = requests.filter((r) => r.state === "approved" || r.state === "working");
  const works = runs.some((r) => r.state === "running" && r.kind === "unlearn");
  return (
    <section aria-label="Forget set" data-cy="sul-forget-set">
      <h2>Forget set <span className="soft">({total})</span></h2>
      <label>Search<input type="search" value={text} data-cy="sul-search" autoComplete="off"
        onChange={(e) => setText(e.target.value)} /></label>
      <label>State<select value={open} data-cy="sul-state" onChange={(e) => setOpen(e.target.value)}>
        <option value="">all</option>
        {Object.entries(STATES).map(([key, words]) => <option key={key} value={key}>{words}</option>)}
      </select></label>
      {waiting.length > 1 ? (
        <Act label="Unlearn all that wait…" name="sul-unlearn-all"
          why={!admin ? NOT_ADMIN : works ? WORKS : undefined}
          act={() => openDialog({ kind: "unlearn", requests: [] })} />
      ) : null}
      {found.length ? null : (
        <p className="soft">{requests.length ? "Nothing matches." : "Nothing is marked."}</p>
      )}
      <ul>{found.slice(0, count).map((r) => <Row key={r.request_id} request={r} />)}</ul>
      {found.length > count ? (
        <Act label={`Show ${found.length - count} more`} act={() => setCount(count + 50)} />
      ) : null}
      {total > requests.length ? (
        <p className="soft">
          {requests.length} of {total}: the newest, all that are open, and those of this study. The
          command line lists all.
        </p>
      ) : null}
    </section>
  );
}
