// Menus of studies and series, where the host has them.
import { openDialog } from "./actions";
import { aboutOf, seriesTarget, whose, wordsOf } from "./active";
import { COLUMN } from "./column";
import { displaySet, displaySets, notify, showPanel } from "./host";
import { get } from "./store";
import type { Target } from "./store";
import { refresh } from "./refresh";
import { WITHDRAWABLE } from "./words";

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
    (r) => r.target.id === target.id && WITHDRAWABLE.includes(r.state),
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

export const customizations = (): Record<string, unknown> => ({
  "studyBrowser.studyMenuItems": add(...MENU),
  "studyBrowser.thumbnailMenuItems": add(...MENU),
  "workList.columns": add(COLUMN),
});
