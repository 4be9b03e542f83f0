// Keeps the state as the server has it: one stream of changes for a tab that is seen, else polling.
import { ApiError, call, open, query } from "./api";
import { notify } from "./host";
import { removeStaleMasks } from "./masks";
import { get, set } from "./store";
import type { State } from "./store";
import type { Adapter, Audit, ForgetRequest, Me, Outbox, Run, Status } from "./types";

const POLL_MS = 3000;
/** The server says something at least every 15 seconds; a silent stream is a cut one. */
const SILENCE_MS = 25_000;
const PAGE = 200;

let stopping: AbortController | null = null;
let refreshing: Promise<void> | null = null;
let again = false;
let forgetSeen = -1;

export async function refreshStatus(): Promise<void> {
  const active = get().active;
  if (!active) return;
  const series = active.series.map((s) => s.uid).slice(0, 900);
  try {
    const found = await call<Record<string, Status>>(
      "GET", `forget/status${query({ study: active.study, series })}`,
    );
    set({ status: { ...get().status, ...found }, statusFault: "" });
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 400) throw error;
    set({ statusFault: error.message });
  }
}

async function everything(): Promise<void> {
  // a refusal of one list must not hide the others
  const optional = async <T>(path: string, otherwise: T): Promise<T> => {
    try {
      return await call<T>("GET", path);
    } catch (error) {
      if (error instanceof ApiError && [403, 404, 409, 503].includes(error.status)) return otherwise;
      throw error;
    }
  };
  const me = await call<Me>("GET", "whoami");
  const [page, runs, audits, adapters, outbox] = await Promise.all([
    call<{ total: number; requests: ForgetRequest[] }>("GET", `forget/requests${query({ limit: PAGE })}`),
    call<Run[]>("GET", `runs${query({ limit: 5 })}`),
    optional<{ audits: Audit[] }>(`audits${query({ limit: 5 })}`, { audits: [] }),
    optional<{ adapters: Adapter[] }>("adapters", { adapters: [] }),
    me.pacs ? optional<Outbox | null>(`pacs/outbox${query({ limit: 0 })}`, null) : null,
    refreshStatus(),
  ]);
  const back = ["away", "expired"].includes(get().server);
  set({
    server: "ok", why: "", ...(back ? { fault: "" } : {}), me, requests: page.requests, total: page.total,
    audits: audits.audits, adapters: adapters.adapters, outbox,
  });
  takeRuns(runs);
  removeStaleMasks();
}

/** Asks for everything; calls that come meanwhile are answered by one more round. */
export function refresh(): Promise<void> {
  if (refreshing) {
    again = true;
    return refreshing;
  }
  refreshing = (async () => {
    try {
      do {
        again = false;
        await everything();
      } while (again);
    } catch (error) {
      failed(error);
    } finally {
      refreshing = null;
    }
  })();
  return refreshing;
}

export function failed(error: unknown): void {
  if (!(error instanceof ApiError)) throw error;
  const server: State["server"] =
    error.status === 401 ? "expired" : error.status === 403 ? "refused" : "away";
  set({ server, why: error.message });
}

const ENDS: Record<string, "success" | "warning" | "error" | "info"> = {
  done: "success", refused: "warning", failed: "error", interrupted: "error", cancelled: "info",
};

export const RUN_NAMES: Record<string, string> = {
  unlearn: "Unlearning", plan: "Dry run", site_adapt: "Adapting", train: "Training", audit: "Audit",
  restore: "Restoring", purge: "Purging", meta_train: "Meta-training",
};

function takeRuns(runs: Run[]): void {
  const before = new Map(get().runs.map((r) => [r.run_id, r]));
  let ended = false;
  for (const run of runs) {
    const old = before.get(run.run_id);
    // the audit's phases measure other things; what the unlearning came to stays in sight
    const kept = Object.entries(old?.progress?.metrics ?? {}).filter(([k]) => k.endsWith("_dice"));
    if (run.progress)
      run.progress.metrics = { ...Object.fromEntries(kept), ...run.progress.metrics };
    if (old && old.state === "running" && run.state !== "running") {
      ended = true;
      const words = `${RUN_NAMES[run.kind] ?? run.kind}: ${run.state}. ${run.message}`;
      notify(ENDS[run.state] ?? "info", words);
      set({ said: words });
    }
  }
  const merged = new Map([...before, ...runs.map((r) => [r.run_id, r] as const)]);
  const newest = [...merged.values()].sort((a, b) => b.started.localeCompare(a.started)).slice(0, 8);
  const { pending } = get();
  const known = new Set(pending?.known);
  set({
    runs: newest,
    pending: pending && newest.some((r) => !known.has(r.run_id)) ? null : pending,
  });
  if (ended) void refresh();
}

interface Change {
  forget: number;
  runs: Run[];
}

async function stream(signal: AbortSignal): Promise<void> {
  const own = new AbortController();
  const stop = (): void => own.abort();
  signal.addEventListener("abort", stop, { once: true });
  let timer = setTimeout(stop, SILENCE_MS);
  try {
    const answer = await open("changes", { signal: own.signal });
    const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
    if (!reader) return;
    let text = "";
    forgetSeen = -1; // with each stream everything is asked once: who calls may be another one now
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE_MS);
      text += value;
      const parts = text.split("\n\n");
      text = parts.pop() ?? "";
      for (const part of parts) {
        const data = part.split("\n").find((line) => line.startsWith("data: "));
        if (data) took(JSON.parse(data.slice(6)) as Change);
      }
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    own.abort();
  }
}

function took(change: Change): void {
  takeRuns(change.runs);
  if (change.forget === forgetSeen && get().server === "ok") return;
  forgetSeen = change.forget;
  void refresh();
}

const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      done();
    }, { once: true });
  });

/** A child process that dies before its run begins leaves only the platform's word. */
async function lookAfterPending(): Promise<void> {
  const pending = get().pending;
  if (!pending || Date.now() - pending.since < 5000) return;
  const task = await call<{ status?: string }>("GET", "train/").catch(() => ({ status: "" }));
  if (task.status === "ERROR" && get().pending === pending)
    set({ pending: null, fault: "The work ended before it began. The server's log says why." });
}

async function live(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    if (!document.hidden) {
      const began = Date.now();
      try {
        await stream(signal);
        if (Date.now() - began > SILENCE_MS) continue; // the server ends each after a minute
      } catch (error) {
        if (!signal.aborted && error instanceof ApiError) failed(error);
      }
      if (signal.aborted) return;
      await refresh(); // the fallback where streams are cut
      await lookAfterPending();
    }
    await pause(POLL_MS, signal);
  }
}

function seen(): void {
  if (document.hidden) {
    stopping?.abort(); // a browser gives one host few connections, and images need them
    stopping = null;
  } else if (!stopping) begin();
}

function begin(): void {
  stopping = new AbortController();
  void live(stopping.signal);
}

/** What waits for the PACS changes without any change of the forget set. */
async function lookAfterOutbox(): Promise<void> {
  if (!get().me?.pacs || document.hidden || get().server !== "ok") return;
  try {
    set({ outbox: await call<Outbox>("GET", `pacs/outbox${query({ limit: 0 })}`) });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // the stream tells that the server is away
  }
}

export function startLive(): () => void {
  begin();
  const slow = setInterval(() => {
    void lookAfterPending();
    void lookAfterOutbox();
  }, POLL_MS);
  document.addEventListener("visibilitychange", seen);
  return () => {
    clearInterval(slow);
    document.removeEventListener("visibilitychange", seen);
    stopping?.abort();
    stopping = null;
  };
}
