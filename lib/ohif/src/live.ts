// Keeps the state as the server has it: one stream of changes for a tab that is seen, else polling.
import { ApiError, call, open, query } from "./api";
import { failed, refresh, takeRuns } from "./refresh";
import { get, set } from "./store";
import type { Outbox, Run, Task } from "./types";

const POLL_MS = 3000;
/** The server says something at least every 15 seconds; a silent stream is a cut one. */
const SILENCE_MS = 25_000;

let stopping: AbortController | null = null;
let forgetSeen = -1;

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
        if (!part.startsWith("event: change")) continue; // a sign of life, or signed out
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

const OVER: Record<string, string> = {
  ERROR: "The work ended before it began. The server's log says why.",
  STOPPED: "The work was stopped before it began.",
  GONE: "The server knows nothing of the work any more; it was started again, perhaps. Start the work anew.",
};

/** Work may end without any run: only the platform's word tells of it then. */
async function lookAfterPending(): Promise<void> {
  const pending = get().pending;
  if (!pending || Date.now() - pending.since < 5000) return;
  let status = "";
  try {
    const tasks = await call<Task[]>("GET", `train/${query({ all: "true" })}`);
    status = tasks.find((t) => t.id === pending.task)?.status ?? "GONE";
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) status = "GONE"; // none at all
  }
  if (status !== "DONE" && !OVER[status]) return;
  await refresh(); // its run, where there is one after all
  if (get().pending !== pending) return;
  const fault = OVER[status];
  set(fault ? { pending: null, fault }
    : { pending: null, said: "The work has ended; nothing had to be run for it." });
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
