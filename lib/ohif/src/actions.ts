// What a person can do, and what is said afterwards.
import { ApiError, call, query, read, segment, sentence } from "./api";
import { notify } from "./host";
import { compare } from "./masks";
import { failed, refresh } from "./refresh";
import { draft, get, set, setDraft } from "./store";
import type { Dialog, State, Target } from "./store";
import type {
  ForgetRequest, Plan, Purged, Reason, RequestDetail, Restored, Run, Task, WouldPurge,
} from "./types";
import { KINDS, TRY_AGAIN, UNSURE, shortId, stopping } from "./words";

/** Number of the question whose answer a dialog waits for; what was asked before is dropped. */
let asked = 0;
/** Studies that were left; what was begun in one is not told over the next. */
let left = 0;

function change(dialog: Dialog | null, more: Partial<State> = {}): void {
  asked += 1;
  const asking = dialog?.kind === "unlearn" || dialog?.kind === "purge";
  set({ dialog, plan: null, wouldPurge: null, asking, fault: "", again: false, ...more });
}

export const openDialog = (dialog: Dialog): void => change(dialog);
export const closeDialog = (): void => change(null);
export const cancelDialog = (): void => { if (!get().busy) closeDialog(); };

/** The study is left: nothing that was about it stays over the next. */
export function leave(): void {
  left += 1;
  change(null, { said: "" });
}

/** Whether the server or the session is gone, whatever was asked. */
const isCut = (error: unknown): boolean =>
  error instanceof ApiError && [0, 401].includes(error.status);

const takesUnlearning = (error: unknown): boolean =>
  error instanceof ApiError && error.status === 409 && error.message.includes("POST /train/unlearn");

/** Does something; a failure is shown where it was asked for, and nothing typed is lost. */
async function perform(work: () => Promise<string>): Promise<boolean> {
  const { busy, dialog } = get();
  if (busy) return false;
  const here = left;
  const isOpen = (): boolean => here === left && [dialog, null].includes(get().dialog);
  set({ busy: true, fault: "", again: false });
  try {
    const said = await work();
    if (isOpen()) change(null);
    if (here === left) set({ said });
    notify("success", said);
    void refresh();
    return true;
  } catch (error) {
    const fault = sentence(error, UNSURE);
    if (isOpen()) set({ fault, again: takesUnlearning(error) });
    else notify("error", fault);
    if (isCut(error)) failed(error);
    else void refresh();
    return false;
  } finally {
    set({ busy: false });
  }
}

/** Fetches something to look at, whatever is done meanwhile. */
async function look(what: string, work: (isHere: () => boolean) => Promise<void>): Promise<void> {
  if (get().looking.includes(what)) return;
  const here = left;
  set({ looking: [...get().looking, what], ...(get().dialog ? {} : { fault: "" }) });
  try {
    await work(() => here === left);
  } catch (error) {
    const fault = sentence(error, TRY_AGAIN);
    if (here !== left) return;
    if (get().dialog) notify("error", fault);
    else set({ fault });
    if (isCut(error)) failed(error);
    else void refresh();
  } finally {
    set({ looking: get().looking.filter((other) => other !== what) });
  }
}

const PATHS = { study: "studies", series: "series", patient: "patients", structure: "structures" };

export async function mark(
  target: Target, reason: Reason, note: string, evenIfUnknown: boolean, drafts: string[],
): Promise<boolean> {
  const done = await perform(async () => {
    const body: Record<string, unknown> = { reason, note, even_if_unknown: evenIfUnknown };
    if (target.kind === "patient") body["issuer"] = target.issuer;
    const path = `forget/${PATHS[target.kind]}/${segment(target.id)}`;
    const request = await call<ForgetRequest>("PUT", path, body);
    const what = [target.words, target.whose, shortId(target.id)].filter(Boolean).join(" · ");
    return `The ${KINDS[target.kind]} is marked for forgetting (${request.state}): ${what}. ${request.message}`.trim();
  });
  if (done) for (const key of drafts) setDraft(key, "");
  return done;
}

export async function withdraw(request: ForgetRequest, why: string): Promise<void> {
  const path = `forget/requests/${request.request_id}${query({ why })}`;
  await perform(async () => {
    await call("DELETE", path);
    setDraft(`why-${request.request_id}`, "");
    return "The mark is taken back.";
  });
}

export const approve = (request: ForgetRequest): Promise<boolean> =>
  perform(async () => {
    await call("POST", `forget/requests/${request.request_id}/approve`);
    return "Approved. It waits for an unlearning.";
  });

export const dismiss = (request: ForgetRequest, why: string): Promise<boolean> =>
  perform(async () => {
    await call("POST", `forget/requests/${request.request_id}/dismiss`, { why });
    setDraft(`why-${request.request_id}`, "");
    return "The proposal is dismissed.";
  });

export async function loadPlan(
  requests: ForgetRequest[], restore: string, method: string,
): Promise<void> {
  const what: Record<string, string | string[]> = restore
    ? { restore } : { request: requests.map((r) => r.request_id) };
  if (method) what["method"] = method;
  await ask(`unlearning/plan${query(what)}`, (plan: Plan | null) => ({ plan }));
}

export const loadPurge = (request: ForgetRequest): Promise<void> =>
  ask(
    `forget/requests/${request.request_id}/purge`,
    (wouldPurge: WouldPurge | null) => ({ wouldPurge }),
  );

/** Asks what the server would do; a refusal is shown in the dialog. */
async function ask<T>(path: string, kept: (found: T | null) => Partial<State>): Promise<void> {
  asked += 1;
  const mine = asked;
  let found: T | null = null;
  let fault = "";
  set({ asking: true, fault });
  try {
    found = await call<T>("GET", path);
  } catch (error) {
    fault = sentence(error, TRY_AGAIN);
    if (mine === asked && isCut(error)) failed(error);
  }
  if (mine === asked) set({ ...kept(found), asking: false, fault });
}

/** What the newest step of a request says, other than that somebody marked it, too. */
export async function lastStep(request: ForgetRequest): Promise<string> {
  try {
    const found = await call<RequestDetail>("GET", `forget/requests/${request.request_id}`);
    const steps = found.history.filter((step) => !step.why.startsWith("marked, too: "));
    return steps[steps.length - 1]?.why ?? "";
  } catch {
    return ""; // the panel tells when the server is away
  }
}

const known = (): string[] => get().runs.map((r) => r.run_id);

/** Waits for a run that was not known before the order was given. */
function order(words: string, before: string[], task: Task): void {
  set({ pending: { words, since: Date.now(), known: before, task: task.id } });
  setTimeout(() => document.getElementById("segunlearn-runs")?.scrollIntoView({ block: "start" }), 300);
}

export const unlearn = (
  requests: ForgetRequest[],
  options: { dry_run: boolean; method: string; quick: boolean; restore: string },
): Promise<boolean> =>
  perform(async () => {
    const body: Record<string, unknown> = {
      dry_run: options.dry_run, quick: options.quick, method: options.method || "auto",
    };
    const why = `why-${options.restore}`;
    if (options.restore) Object.assign(body, { restore: options.restore, why: draft(why) });
    else body["requests"] = requests.map((r) => r.request_id).join(",");
    const { plan } = get();
    if (plan && !options.dry_run) body["expected"] = plan.requests.map((r) => r.id).join(",");
    const before = known();
    const task = await call<Task>("POST", "train/unlearn", body).catch((error: unknown) => {
      if (error instanceof ApiError && error.status === 409) set({ plan: null }); // it may be another now
      throw error;
    });
    if (!options.dry_run) setDraft(why, "");
    order(options.dry_run ? "The dry run starts" : "The unlearning starts", before, task);
    return options.dry_run ? "The dry run starts; nothing is changed." : "The unlearning starts.";
  });

export const restore = (request: ForgetRequest, why: string): Promise<boolean> =>
  perform(async () => {
    const path = `forget/requests/${request.request_id}/restore`;
    const found = await call<Restored>("POST", path, { why });
    setDraft(`why-${request.request_id}`, "");
    const others = found.requests.length - 1;
    return (
      `Version ${found.version} serves again.` +
      (others > 0 ? ` ${others} more of the same unlearning came back with it.` : "")
    );
  });

export const purge = (request: ForgetRequest, why: string): Promise<boolean> =>
  perform(async () => {
    const path = `forget/requests/${request.request_id}/purge`;
    const found = await call<Purged>("POST", path, { why, confirm: true });
    setDraft(`why-${request.request_id}`, "");
    const places = found.places.map((p) => `${p.where}: ${p.words}`).join(" ");
    const others = found.requests.length;
    return (
      `Destroyed for good: ${found.destroyed.join(", ") || "the key"}.` +
      (others ? ` ${others} more of the same unlearning cannot be restored any more.` : "") +
      (places ? ` Still to be looked at: ${places}` : "")
    );
  });

export const cancel = (run: Run): Promise<boolean> =>
  perform(async () => {
    await call("POST", `runs/${run.run_id}/cancel`);
    return stopping(run);
  });

export const adapt = (now: boolean, confirmOne: boolean): Promise<boolean> =>
  perform(async () => {
    const support = get().support.map((s) => s.uid).join(",");
    const before = known();
    const options = { adapt_now: now, support, confirm_one: confirmOne };
    const task = await call<Task>("POST", "train/site_adapt", options);
    order(now ? "The adapting starts" : "The dry run starts", before, task);
    return now ? "The adapting starts." : "The dry run starts; nothing is changed.";
  });

export const rollBack = (key: string): Promise<boolean> =>
  perform(async () => {
    const found = await call<{ adapter: { version: string } | null }>(
      "POST", `adapters/${segment(key)}/rollback`,
    );
    return found.adapter ? `Adapter ${found.adapter.version} serves again.` : "The model itself serves the site.";
  });

export const compareMasks = (series: string, request: string): Promise<void> =>
  look("masks", () => compare(series, request));

/** With a token in the header a plain link would be refused: the report is shown in a frame. */
export const showReport = (audit: string): Promise<void> =>
  look(audit, async (isHere) => {
    const html = await read("GET", `audits/${audit}/report`);
    if (!isHere()) return;
    if (get().dialog) notify("info", "The report came while another dialog is open. Ask for it again.");
    else openDialog({ kind: "report", audit, html });
  });
