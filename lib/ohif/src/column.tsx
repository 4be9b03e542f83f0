// The column of the study list, where the host has one: what is marked, and what is not known.
import { ApiError, call, query, sentence } from "./api";
import { React } from "./react";
import { batches } from "./refresh";
import { get, subscribe } from "./store";
import type { Status } from "./types";
import { TRY_AGAIN, stateOf } from "./words";

/** An answer is asked for again after this time, sooner where there was none. */
const FRESH_MS = 30_000;
const PAUSE_MS = 5000;
const TOGETHER_MS = 50;
const LEARNED = "segunlearn-status";

interface Known {
  status: Status | null;
  fault: string;
  until: number;
}

const known = new Map<string, Known>();
/** Studies whose cells are shown, and in how many. */
const shown = new Map<string, number>();
let timer = 0;
let asking = false;

export function forgetKnown(): void {
  known.clear();
}

/** The list asks for one cell at a time; one question is for all that come together. */
function askIn(ms: number): void {
  clearTimeout(timer);
  timer = window.setTimeout(() => void ask(), ms);
}

async function ask(): Promise<void> {
  asking = true;
  const seen = document.hidden ? [] : [...shown.keys()];
  for (const studies of batches(seen.filter((uid) => (known.get(uid)?.until ?? 0) <= Date.now())))
    await learn(studies);
  asking = false;
  const more = !document.hidden && [...shown.keys()].some((uid) => !known.has(uid));
  if (shown.size) askIn(more ? TOGETHER_MS : PAUSE_MS);
}

async function learn(study: string[]): Promise<void> {
  let found: Record<string, Status> | null = null;
  let [fault, wait] = ["", FRESH_MS];
  try {
    found = await call<Record<string, Status> | null>("GET", `forget/status${query({ study })}`);
  } catch (error) {
    const refused = error instanceof ApiError && error.status === 400;
    if (refused && study.length > 1) {
      for (const uid of study) await learn([uid]);
      return;
    }
    fault = sentence(error, TRY_AGAIN);
    wait = refused ? Infinity : PAUSE_MS;
  }
  for (const uid of study)
    known.set(uid, { status: found?.[uid] ?? null, fault, until: Date.now() + wait });
  window.dispatchEvent(new Event(LEARNED));
}

function show(study: string): () => void {
  shown.set(study, (shown.get(study) ?? 0) + 1);
  if (!asking) askIn(TOGETHER_MS);
  return () => {
    const left = (shown.get(study) ?? 0) - 1;
    if (left > 0) shown.set(study, left);
    else shown.delete(study);
  };
}

function Cell({ study }: { study: string }): JSX.Element | null {
  const found = React.useSyncExternalStore(
    (changed) => {
      window.addEventListener(LEARNED, changed);
      const stop = subscribe(changed);
      return () => {
        window.removeEventListener(LEARNED, changed);
        stop();
      };
    },
    () => known.get(study),
  );
  React.useEffect(() => (study ? show(study) : undefined), [study]);
  if (!found) return null;
  const { status, fault } = found;
  if (!status) return <span title={fault} data-cy="sul-cell-unknown">?</span>;
  if (!status.marked && !status.series_marked) return null;
  const cover = status.covers[0];
  const title = status.marked ? `Marked for forgetting: ${cover ? stateOf(cover, get().runs) : ""}`
    : "Series are marked for forgetting";
  return (
    <span className="sul-cell" title={title} data-cy="sul-cell">
      {status.marked ? "FORGET" : `${status.series_marked} series`}
    </span>
  );
}

interface ListRow {
  original?: { studyInstanceUid?: string; StudyInstanceUID?: string };
}
const uidOf = (row: ListRow["original"]): string => row?.studyInstanceUid ?? row?.StudyInstanceUID ?? "";

export const COLUMN = {
  id: "segunlearnForget",
  accessorFn: (row: ListRow["original"]) => (known.get(uidOf(row))?.status?.marked ? "FORGET" : ""),
  header: () => "Forget",
  cell: ({ row }: { row: ListRow }) => {
    const study = uidOf(row.original);
    return React ? <Cell study={study} key={study} /> : null;
  },
  enableSorting: false,
  meta: { label: "Forget", minWidth: 90, headerClassName: "min-w-[90px]", cellClassName: "min-w-[90px]" },
};
