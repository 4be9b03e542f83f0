// What a person can do, and what is said afterwards.
import { ApiError, call, open, query, segment } from "./api";
import { notify } from "./host";
import { failed, refresh } from "./live";
import { compare } from "./masks";
import { get, set, setDraft } from "./store";
import type { Dialog, Target } from "./store";
import type { ForgetRequest, Plan, Purged, Reason, Restored, Run } from "./types";
import { KINDS } from "./words";

export const openDialog = (dialog: Dialog): void => set({ dialog, fault: "", plan: null });
export const closeDialog = (): void => set({ dialog: null, fault: "", plan: null });

/** Does something; a failure is shown where it was asked for, and nothing typed is lost. */
async function perform(work: () => Promise<string>, close = true): Promise<boolean> {
  if (get().busy) return false;
  set({ busy: true, fault: "" });
  try {
    const said = await work();
    set({ said, ...(close ? { dialog: null, plan: null } : {}) });
    if (said) notify("success", said);
    void refresh();
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    set({ fault: error.message });
    if (error.status === 0 || error.status === 401) failed(error);
    else void refresh();
    return false;
  } finally {
    set({ busy: false });
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
    const what = KINDS[target.kind];
    return `The ${what} is marked for forgetting (${request.state}). ${request.message}`.trim();
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
  const asked: Record<string, string | string[]> = restore
    ? { restore } : { request: requests.map((r) => r.request_id) };
  if (method) asked["method"] = method;
  try {
    set({ plan: await call<Plan>("GET", `unlearning/plan${query(asked)}`), fault: "" });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    set({ fault: error.message });
  }
}

function order(words: string): void {
  set({ pending: { words, since: Date.now(), known: get().runs.map((r) => r.run_id) } });
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
    if (options.restore) body["restore"] = options.restore;
    else body["requests"] = requests.map((r) => r.request_id).join(",");
    await call("POST", "train/unlearn", body);
    order(options.dry_run ? "The dry run starts" : "The unlearning starts");
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
    return (
      `Destroyed for good: ${found.destroyed.join(", ") || "the key"}.` +
      (places ? ` Still to be looked at: ${places}` : "")
    );
  });

export const cancel = (run: Run): Promise<boolean> =>
  perform(async () => {
    await call("POST", `runs/${run.run_id}/cancel`);
    return "It stops at its next step; the version in service stays.";
  });

export const adapt = (now: boolean, confirmOne: boolean): Promise<boolean> =>
  perform(async () => {
    const support = get().support.map((s) => s.uid).join(",");
    await call("POST", "train/site_adapt", { adapt_now: now, support, confirm_one: confirmOne });
    order(now ? "The adapting starts" : "The dry run starts");
    return now ? "The adapting starts." : "The dry run starts; nothing is changed.";
  });

export const rollBack = (key: string): Promise<boolean> =>
  perform(async () => {
    const found = await call<{ adapter: { version: string } | null }>(
      "POST", `adapters/${segment(key)}/rollback`,
    );
    return found.adapter ? `Adapter ${found.adapter.version} serves again.` : "The model itself serves the site.";
  });

export const compareMasks = (series: string, request: string): Promise<boolean> =>
  perform(async () => {
    await compare(series, request);
    return "";
  }, false);

/** With a token in the header a plain link would be refused: the report is shown in a frame. */
export const showReport = (audit: string): Promise<boolean> =>
  perform(async () => {
    const answer = await open(`audits/${audit}/report`, { method: "GET" });
    set({ dialog: { kind: "report", audit, html: await answer.text() } });
    return "";
  }, false);
