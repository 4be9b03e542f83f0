// Menus of studies and series, and the column of the study list, where the host has them.
import { openDialog } from "./actions";
import { aboutOf, seriesTarget, whose, wordsOf } from "./active";
import { ApiError, call, query } from "./api";
import { displaySet, displaySets, notify, showPanel } from "./host";
import { React } from "./react";
import { get, subscribe } from "./store";
import type { Target } from "./store";
import { refresh } from "./refresh";
import type { Status } from "./types";
import { stateOf } from "./words";

interface MenuArguments {
  StudyInstanceUID?: string;
  displaySetInstanceUID?: string;
  displaySetInstanceUIDs?: string[];
}

function targetOf(found: MenuArguments): Target | null {
  const uid = found.displaySetInstanceUID ?? found.displaySetInstanceUIDs?.[0];
  const set = uid ? displaySet(uid) : undefined;
  if (set?.SeriesInstanceUID) return seriesTarget(set.SeriesInstanceUID, wordsOf(set), aboutOf(set));
  const study = found.StudyInstanceUID;
  if (!study) return null;
  const one = displaySets().find((d) => d.StudyInstanceUID === study);
  const about = aboutOf(one);
  const words = one ? about.words : "Study that is not loaded";
  return { kind: "study", id: study, issuer: "", words, whose: whose(about) };
}

function markFromMenu(found: MenuArguments): void {
  const target = targetOf(found);
  if (!target) return;
  showPanel();
  if (get().me?.may_mark === false) notify("warning", "Only annotators and administrators may mark.");
  else openDialog({ kind: "mark", target });
}

async function withdrawFromMenu(found: MenuArguments): Promise<void> {
  const target = targetOf(found);
  if (!target) return;
  showPanel();
  await refresh();
  const request = get().requests.find(
    (r) => r.target.id === target.id && ["requested", "approved"].includes(r.state),
  );
  if (request) openDialog({ kind: "withdraw", request });
  else notify("info", `This ${target.kind} has no mark of its own that can be taken back.`);
}

export const commands = (): Record<string, unknown> => ({
  actions: { segunlearnMark: markFromMenu, segunlearnWithdraw: withdrawFromMenu },
  definitions: {
    segunlearnMark: { commandFn: markFromMenu },
    segunlearnWithdraw: { commandFn: withdrawFromMenu },
  },
  defaultContext: "DEFAULT",
});

type Items = { id?: string }[];

/** Appends once: some hosts apply this at each entry into a mode, some have no such list. */
const add = (...items: { id: string }[]) => ({
  $apply: (old: unknown): Items => {
    const all: Items = Array.isArray(old) ? old : [];
    return [...all, ...items.filter((item) => !all.some((i) => i?.id === item.id))];
  },
});

const MENU = [
  {
    id: "segunlearnMark", label: "Mark for forgetting…", iconName: "Delete",
    commands: "segunlearnMark",
  },
  { id: "segunlearnWithdraw", label: "Withdraw mark", iconName: "Refresh", commands: "segunlearnWithdraw" },
];

// The list asks for one cell at a time; one request answers for all that were asked together.
const known = new Map<string, Status>();
const wanted = new Set<string>();
let timer = 0;

export function forgetKnown(): void {
  known.clear();
}

async function ask(): Promise<void> {
  timer = 0;
  const study = [...wanted].slice(0, 500);
  for (const uid of study) wanted.delete(uid);
  try {
    const found = await call<Record<string, Status>>("GET", `forget/status${query({ study })}`);
    for (const [uid, status] of Object.entries(found)) known.set(uid, status);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
  window.dispatchEvent(new Event("segunlearn-status"));
  if (wanted.size) timer = window.setTimeout(() => void ask(), 0);
}

function Cell({ study }: { study: string }): JSX.Element | null {
  const read = (): Status | undefined => known.get(study);
  const status = React.useSyncExternalStore(
    (changed) => {
      window.addEventListener("segunlearn-status", changed);
      const stop = subscribe(changed);
      return () => {
        window.removeEventListener("segunlearn-status", changed);
        stop();
      };
    },
    read,
  );
  React.useEffect(() => {
    if (!study || known.has(study)) return;
    wanted.add(study);
    timer ||= window.setTimeout(() => void ask(), 50);
  }, [study, status]);
  if (!status?.marked && !status?.series_marked) return null;
  const words = status.marked ? "FORGET" : `${status.series_marked} series`;
  const title = status.marked ? `Marked for forgetting: ${status.covers[0] ? stateOf(status.covers[0], get().runs) : ""}` : "Series are marked for forgetting";
  return React.createElement("span", { "className": "sul-cell", title, "data-cy": "sul-cell" }, words);
}

interface ListRow {
  original?: { studyInstanceUid?: string; StudyInstanceUID?: string };
}
const uidOf = (row: ListRow["original"]): string => row?.studyInstanceUid ?? row?.StudyInstanceUID ?? "";

const COLUMN = {
  id: "segunlearnForget",
  accessorFn: (row: ListRow["original"]) => (known.get(uidOf(row))?.marked ? "FORGET" : ""),
  header: () => "Forget",
  cell: ({ row }: { row: ListRow }) => {
    const study = uidOf(row.original);
    return React ? React.createElement(Cell, { study, key: study }) : null;
  },
  enableSorting: false,
  meta: { label: "Forget", minWidth: 90, headerClassName: "min-w-[90px]", cellClassName: "min-w-[90px]" },
};

export const customizations = (): Record<string, unknown> => ({
  "studyBrowser.studyMenuItems": add(...MENU),
  "studyBrowser.thumbnailMenuItems": add(...MENU),
  "workList.columns": add(COLUMN),
});
