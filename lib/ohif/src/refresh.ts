// Asks the server for all that is shown, and keeps it; when it is asked is told in live.ts.
import { loaded } from "./active";
import { ApiError, call, query, sentence } from "./api";
import { notify } from "./host";
import { removeStaleMasks } from "./masks";
import { get, set } from "./store";
import type { State } from "./store";
import type {
  Adapter, Audit, ForgetRequest, Me, Outbox, RequestState, Run, Status,
} from "./types";
import { RUN_NAMES, UNSURE } from "./words";

const PAGE = 200;
const MOST = 1000;
/** Studies and series of one question: its address must pass proxies. */
const BATCH = 80;
const OPEN: RequestState[] = ["proposed", "requested", "approved", "working", "refused"];

let refreshing: Promise<void> | null = null;
let again = false;

/** Questions on status so far, and by UID the one whose answer is kept: an older one may come later. */
let questions = 0;
const answered = new Map<string, number>();

/** Asks for all that is seen: the active study, then other studies loaded, and the support. */
export async function refreshStatus(): Promise<void> {
  const { active, support } = get();
  const mine = (questions += 1);
  const isNewest = (uid: string): boolean => mine >= (answered.get(uid) ?? 0);
  const others = loaded();
  const own = [...(active ? [active.study] : []), ...(active?.series ?? []).map((s) => s.uid)];
  const seen = new Set(own);
  const more = [...others.studies, ...others.series, ...support.map((s) => s.uid)]
    .filter((uid) => !seen.has(uid));
  const studies = new Set([own[0], ...others.studies]);
  let found: Record<string, Status> = {};
  let statusFault = "";
  for (const uids of [...batches(own), ...batches([...new Set(more)])]) {
    const study = uids.filter((uid) => studies.has(uid));
    const series = uids.filter((uid) => !studies.has(uid));
    try {
      const part = await call<Record<string, Status>>("GET", `forget/status${query({ study, series })}`);
      found = { ...found, ...part };
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 400) throw error;
      if (seen.has(uids[0] ?? "")) statusFault = error.message;
    }
  }
  const fresh = Object.entries(found).filter(([uid]) => isNewest(uid));
  for (const [uid] of fresh) answered.set(uid, mine);
  set({ status: { ...get().status, ...Object.fromEntries(fresh) } });
  const study = active?.study ?? "";
  if (study !== (get().active?.study ?? "") || !isNewest(study)) return;
  answered.set(study, mine);
  set({ statusFault });
}

export const batches = (uids: string[]): string[][] =>
  Array.from({ length: Math.ceil(Math.min(uids.length, MOST) / BATCH) }, (_, i) =>
    uids.slice(i * BATCH, (i + 1) * BATCH));

export async function lookAtStudy(): Promise<void> {
  await refreshStatus();
  const older = await olderOf(get().requests);
  if (older.length) set({ requests: joined(older, get().requests) });
}

const joined = (...parts: ForgetRequest[][]): ForgetRequest[] =>
  [...new Map(parts.flat().map((r) => [r.request_id, r])).values()]
    .sort((a, b) => b.created.localeCompare(a.created));

/** The newest requests, and of a longer list also whatever still waits for somebody. */
async function listed(): Promise<{ total: number; requests: ForgetRequest[] }> {
  const ask = (values: Parameters<typeof query>[0]): Promise<{ total: number; requests: ForgetRequest[] }> =>
    call("GET", `forget/requests${query(values)}`);
  const page = await ask({ limit: PAGE });
  if (page.total <= page.requests.length) return page;
  const open = await ask({ state: OPEN, limit: MOST });
  return { total: page.total, requests: joined(page.requests, open.requests) };
}

/** What a list lacks of the active study, and of the masks that are shown. */
async function olderOf(requests: ForgetRequest[]): Promise<ForgetRequest[]> {
  const { active, status, masks } = get();
  const uids = active ? [active.study, ...active.series.map((s) => s.uid)] : [];
  const covers = uids.flatMap((uid) => [...(status[uid]?.covers ?? []), ...(status[uid]?.proposals ?? [])]);
  const there = new Set(requests.map((r) => r.request_id));
  const ids = new Set([...covers.map((c) => c.request_id), ...(masks ? [masks.request] : [])]);
  const missing = [...ids].filter((id) => !there.has(id)).slice(0, 20);
  return each<ForgetRequest>(missing.map((id) => `forget/requests/${id}`));
}

/** Asks one by one; what is not there (any more) is left out. */
async function each<T>(paths: string[]): Promise<T[]> {
  const found: T[] = [];
  for (const path of paths)
    try {
      found.push(await call<T>("GET", path));
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) throw error;
    }
  return found;
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
    listed(),
    newestRuns(),
    optional<{ audits: Audit[] }>(`audits${query({ limit: 5 })}`, { audits: [] }),
    optional<{ adapters: Adapter[] }>("adapters", { adapters: [] }),
    me.pacs ? optional<Outbox | null>(`pacs/outbox${query({ limit: 0 })}`, null) : null,
    refreshStatus(),
  ]);
  const requests = joined(await olderOf(page.requests), page.requests);
  takeRuns(runs);
  const { server, fault } = get();
  const over = ["away", "expired"].includes(server) && !fault.endsWith(UNSURE);
  set({
    server: "ok", why: "", ...(over ? { fault: "" } : {}), me, requests, total: page.total,
    audits: audits.audits, adapters: adapters.adapters, outbox,
  });
  removeStaleMasks();
}

/** The newest runs, those that run, and those that ran when they were last told of. */
async function newestRuns(): Promise<Run[]> {
  const newest = await call<Run[]>("GET", `runs${query({ limit: 5 })}`);
  const running = await call<Run[]>("GET", `runs${query({ state: "running", limit: 20 })}`);
  const told = new Set([...newest, ...running].map((r) => r.run_id));
  const lost = get().runs.filter((r) => r.state === "running" && !told.has(r.run_id));
  const ended = await each<Run>(lost.map((r) => `runs/${r.run_id}`));
  const gone = lost.filter((r) => !ended.some((e) => e.run_id === r.run_id));
  if (gone.length) set({ runs: get().runs.filter((r) => !gone.includes(r)) });
  return [...newest, ...running, ...ended];
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
        await everything().catch(failed);
      } while (again);
    } finally {
      refreshing = null;
    }
  })();
  return refreshing;
}

/** Says what is wrong; asking goes on, whatever it was. */
export function failed(error: unknown): void {
  const status = error instanceof ApiError ? error.status : 0;
  const server: State["server"] = status === 401 ? "expired" : status === 403 ? "refused" : "away";
  set({ server, why: sentence(error) });
}

const ENDS: Record<string, "success" | "warning" | "error" | "info"> = {
  done: "success", refused: "warning", failed: "error", interrupted: "error", cancelled: "info",
};

/** The answer to the order says more of these, such as which places a purge leaves open. */
const ANSWERED = new Set(["restore", "purge"]);

/** Takes runs that the server told of, and says which have ended. */
export function takeRuns(runs: Run[]): void {
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
      if (!ANSWERED.has(run.kind)) set({ said: words });
    }
  }
  const merged = new Map([...before, ...runs.map((r) => [r.run_id, r] as const)]);
  const newest = [...merged.values()].sort((a, b) => b.started.localeCompare(a.started))
    .filter((r, place) => place < 8 || r.state === "running");
  const { pending } = get();
  const known = new Set(pending?.known);
  set({
    runs: newest,
    pending: pending && newest.some((r) => !known.has(r.run_id)) ? null : pending,
  });
  if (ended) void refresh();
}
