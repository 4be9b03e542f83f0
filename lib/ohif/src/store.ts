// The one state of the extension. Panels are mounted again and again; nothing is kept in them.
import type { Masks } from "./masks";
import { React } from "./react";
import type {
  Adapter, Audit, ForgetRequest, Kind, Me, Outbox, Plan, Run, Status, WouldPurge,
} from "./types";

export interface Series {
  uid: string;
  words: string;
}

/** What the headers say of a study and its patient. */
export interface About {
  words: string;
  patient: string;
  patientId: string;
  issuer: string;
  date: string;
}

export interface Active extends About {
  study: string;
  series: Series[];
  shown: string;
}

export interface Target {
  kind: Kind;
  id: string;
  issuer: string;
  words: string;
  /** Patient and date of a study or series, where they are known. */
  whose: string;
}

export type Dialog =
  | { kind: "mark"; target: Target }
  | { kind: "withdraw" | "approve" | "dismiss" | "restore" | "purge"; request: ForgetRequest }
  /** Without requests and restore: all that wait. */
  | { kind: "unlearn"; requests: ForgetRequest[]; restore?: string }
  | { kind: "adapt" }
  | { kind: "rollback"; adapter: Adapter }
  | { kind: "cancel"; run: Run }
  | { kind: "report"; audit: string; html: string };

export interface State {
  server: "starting" | "ok" | "away" | "expired" | "refused";
  why: string;
  me: Me | null;
  active: Active | null;
  status: Record<string, Status>;
  /** Why the state of the active study is not known. */
  statusFault: string;
  requests: ForgetRequest[];
  total: number;
  runs: Run[];
  /** An order that was given, while no run of it is known yet. */
  pending: { words: string; since: number; known: string[]; task: string } | null;
  audits: Audit[];
  adapters: Adapter[];
  outbox: Outbox | null;
  masks: Masks | null;
  dialog: Dialog | null;
  plan: Plan | null;
  wouldPurge: WouldPurge | null;
  /** The dialog waits for what the server would do. */
  asking: boolean;
  busy: boolean;
  /** What is fetched to be looked at: "masks", or audits for their reports. */
  looking: readonly string[];
  fault: string;
  /** The restore that was refused takes an unlearning of others. */
  again: boolean;
  /** What was done last, for screen readers and eyes. */
  said: string;
  support: Series[];
}

let state: State = {
  server: "starting",
  why: "",
  me: null,
  active: null,
  status: {},
  statusFault: "",
  requests: [],
  total: 0,
  runs: [],
  pending: null,
  audits: [],
  adapters: [],
  outbox: null,
  masks: null,
  dialog: null,
  plan: null,
  wouldPurge: null,
  asking: false,
  busy: false,
  looking: [],
  fault: "",
  again: false,
  said: "",
  support: [],
};

const listeners = new Set<() => void>();

export const get = (): State => state;

export function set(patch: Partial<State>): void {
  const changed = (Object.keys(patch) as (keyof State)[]).some((k) => patch[k] !== state[k]);
  if (!changed) return;
  state = { ...state, ...patch };
  for (const listener of [...listeners]) listener();
}

export function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function useStore<T>(select: (state: State) => T): T {
  return React.useSyncExternalStore(subscribe, () => select(state));
}

// Typed text outlives errors, other panels and reloads of the page, and ends with the tab.
const KEY = "segunlearn.drafts";

function drafts(): Record<string, string> {
  try {
    const found: unknown = JSON.parse(sessionStorage.getItem(KEY) ?? "{}");
    return found !== null && typeof found === "object" ? (found as Record<string, string>) : {};
  } catch {
    return {};
  }
}

let texts = drafts();

export const draft = (key: string): string => (typeof texts[key] === "string" ? texts[key] : "");

export function setDraft(key: string, text: string): void {
  texts = { ...texts };
  if (text) texts[key] = text;
  else delete texts[key];
  try {
    sessionStorage.setItem(KEY, JSON.stringify(texts));
  } catch {
    // a full or forbidden storage: the text lives as long as the page
  }
  for (const listener of [...listeners]) listener();
}

export function useDraft(key: string): [string, (text: string) => void] {
  const text = React.useSyncExternalStore(subscribe, () => draft(key));
  return [text, (next) => setDraft(key, next)];
}

export function loadSupport(): void {
  try {
    set({ support: JSON.parse(draft("support") || "[]") as Series[] });
  } catch {
    set({ support: [] });
  }
}

export function setSupport(support: Series[]): void {
  set({ support });
  setDraft("support", support.length ? JSON.stringify(support) : "");
}
