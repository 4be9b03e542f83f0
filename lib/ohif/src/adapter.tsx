// The adapters of the sites: which serves, making one from some studies, rolling back.
import { openDialog } from "./actions";
import { Act } from "./parts";
import { React } from "./react";
import { setSupport, useStore } from "./store";
import type { Adapter } from "./types";
import { NOT_ADMIN, shortId, when } from "./words";

function Line({ adapter }: { adapter: Adapter }): JSX.Element {
  const admin = useStore((s) => s.me?.may_decide ?? false);
  return (
    <li className="sul-row" data-cy="sul-adapter" data-serves={adapter.serves}>
      <p className="words">
        <strong>{adapter.site}</strong> {adapter.version}{" "}
        <span className={`sul-chip ${adapter.serves ? "good" : "plain"}`}>
          {adapter.serves ? "serves" : adapter.here ? adapter.state : "destroyed"}
        </span>
      </p>
      <p className="soft words">{when(adapter.created)}{adapter.why ? `; ${adapter.why}` : ""}</p>
      {adapter.serves ? (
        <Act label="Roll back…" about={adapter.site} why={admin ? undefined : NOT_ADMIN}
          act={() => openDialog({ kind: "rollback", adapter })} />
      ) : null}
    </li>
  );
}

export function AdapterSection(): JSX.Element {
  const adapters = useStore((s) => s.adapters);
  const support = useStore((s) => s.support);
  const status = useStore((s) => s.status);
  const admin = useStore((s) => s.me?.may_decide ?? false);
  const newest = [...adapters].reverse();
  const why = !admin ? NOT_ADMIN
    : support.length ? undefined
    : "Choose labelled series first: “Use for adapting” beside each.";
  return (
    <section aria-label="Site adapter" data-cy="sul-adapters">
      <h2>Site adapter</h2>
      {newest.length ? null : <p className="soft">The model itself serves every site.</p>}
      <ul>{newest.slice(0, 5).map((a) => <Line key={`${a.key}${a.version}`} adapter={a} />)}</ul>
      <h3>Adapt with these {support.length} series</h3>
      <ul>
        {support.map((s) => (
          <li key={s.uid} className="words">
            {s.words} <span className="id" title={s.uid}>{shortId(s.uid)}</span>
            {status[s.uid]?.marked ? <span className="warn"> (marked: left out)</span> : null}{" "}
            <Act label="Remove" about={s.words}
              act={() => setSupport(support.filter((x) => x.uid !== s.uid))} />
          </li>
        ))}
      </ul>
      <Act label="Adapt…" name="sul-adapt" why={why} act={() => openDialog({ kind: "adapt" })} />
    </section>
  );
}
