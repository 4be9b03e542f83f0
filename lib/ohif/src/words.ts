// Every sentence about what becomes of the data stands here.
import type { ForgetRequest, Kind, Level, Reason, RequestState, Run } from "./types";

export const REASONS: Record<Reason, string> = {
  consent_withdrawn: "Consent withdrawn",
  wrong_patient: "Wrong patient",
  wrong_label: "Wrong label",
  quality: "Image quality",
  retention_expired: "Retention period over",
  other: "Other (say which)",
};

/** States in which a mark can be taken back: nothing has been changed in a model. */
export const WITHDRAWABLE: readonly RequestState[] = ["requested", "approved", "refused"];

/** What a request stands for: its state, or that it is only hidden, whatever its state. */
export type Standing = RequestState | "hidden";

export const STATES: Record<Standing, string> = {
  proposed: "proposed by the PACS",
  dismissed: "proposal dismissed",
  requested: "waits for approval",
  approved: "approved",
  withdrawn: "mark withdrawn",
  working: "not yet forgotten",
  refused: "tried, not forgotten",
  hidden: "hidden, not forgotten",
  fulfilled: "forgotten, restorable",
  restored: "restored",
  purged: "erased for good",
};

export const KINDS: Record<Kind, string> = {
  patient: "patient",
  study: "study",
  series: "series",
  structure: "structure",
};

export const TONES: Record<Standing, "plain" | "warn" | "good" | "bad"> = {
  proposed: "warn",
  dismissed: "plain",
  requested: "warn",
  approved: "warn",
  withdrawn: "plain",
  working: "warn",
  hidden: "warn",
  refused: "bad",
  fulfilled: "good",
  restored: "plain",
  purged: "good",
};

export const RUN_NAMES: Record<string, string> = {
  unlearn: "Unlearning", plan: "Dry run", site_adapt: "Adapting", train: "Training", audit: "Audit",
  restore: "Restoring", purge: "Purging", meta_train: "Meta-training",
};

const LEVELS: readonly Level[] = ["none", "hidden", "unlearned", "retrained"];

/** Whether an unlearning of this request runs now. */
export const isUnlearned = (request_id: string, runs: readonly Run[]): boolean =>
  runs.some((r) => {
    const ids = r.parameters["requests"];
    return r.state === "running" && r.kind === "unlearn" && Array.isArray(ids) && ids.includes(request_id);
  });

/** What only opens, seals or destroys versions never looks whether it shall stop. */
export const isStoppable = (run: Run): boolean =>
  run.kind !== "purge" && run.parameters["method"] !== "none";

export const stopping = (run: Run): string =>
  "It stops at its next step. The version in service stays" +
  (run.kind === "unlearn" ? ", unless the audit has passed already: then the new one is published." : ".");

type About = Pick<ForgetRequest, "request_id" | "state" | "needed" | "reached">;

const isShort = (about: About): boolean =>
  LEVELS.indexOf(about.reached) < LEVELS.indexOf(about.needed);

/** Outputs that hide a study leave it in the weights: fulfilled or not, it is not forgotten. */
export function standingOf(about: About): Standing {
  const { state } = about;
  const hidden = about.reached === "hidden" &&
    (state === "fulfilled" || (state === "working" && isShort(about)));
  return hidden ? "hidden" : state;
}

/** The standing in words: what is in work may not run, or wait for another model. */
export function stateOf(about: About, runs: readonly Run[]): string {
  if (about.state !== "working") return STATES[standingOf(about)];
  if (isUnlearned(about.request_id, runs)) return "being unlearned";
  if (about.reached === "none") return STATES.working;
  return isShort(about) ? `only ${about.reached} so far` : "another model still knows it";
}

/** The reason that a person gave: of who agreed, where another system proposed it. */
export const reasonOf = (request: Pick<ForgetRequest, "reason" | "agreed_reason">): string =>
  REASONS[request.agreed_reason || request.reason];

/** Who wants it: of a proposal, who agreed to it. */
export const whoOf = (request: Pick<ForgetRequest, "marked_by" | "agreed_by">): string =>
  request.agreed_by ? `${request.marked_by}, ${request.agreed_by} agreed` : request.marked_by;

/** Which law's word applies to a request as it stands. */
export function lawOf(request: Pick<ForgetRequest, "state" | "live">): string {
  if (request.state === "purged") return "Erasure (GDPR Art. 17): nobody can bring it back.";
  if (request.live)
    return "Restriction of processing (GDPR Art. 18): kept out of learning, not erased.";
  return "Not restricted: training may use it again.";
}

export const MARKING = [
  "Images and labels stay in the archive, and everybody sees them as before.",
  "From now on no training, validation, proposal or adaptation reads them. Models that were trained before still know them until an unlearning.",
  "In the law's words: restriction of processing (GDPR Art. 18), not erasure.",
];

export const WITHDRAWING = [
  "The mark is taken back. Training may use the data again, and nothing is unlearned.",
];

export const APPROVING = [
  "You confirm that this is to be forgotten. Nothing changes in the model yet: an unlearning does that.",
  "In the law's words: restriction of processing (GDPR Art. 18), as since the mark; nothing is erased.",
];

export const UNLEARNING = [
  "A new version of the model is made that shall behave as if it had never seen these data. An audit attacks it; it is served only if the audit passes. Otherwise the present version stays.",
  "The present version is sealed; only the keys of all requests that are unlearned together open it. “Restore” brings it back, byte for byte, until one of them is purged. Images and labels in the archive are not touched.",
  "In the law's words: restriction of processing (GDPR Art. 18). Only a purge is erasure (Art. 17).",
];

export const RESTORING = [
  "A version that knows these data serves again. The request is closed: training may use the data again.",
  "Versions made since are no longer served. Requests that were unlearned together come back together.",
  "In the law's words: the restriction of processing (GDPR Art. 18) ends.",
];

/** What else a purge takes along. */
export const LOSING =
  "These were unlearned together with it and lose their way back, too. They stay forgotten, and nobody can restore them any more:";

export const PURGING = [
  "The key, every old version that knows these data, their checkpoints and caches are destroyed. Nobody can restore them, we neither.",
  "Images and labels in the archive stay; the answer lists the places that may still hold something.",
  "In the law's words: erasure (GDPR Art. 17) of what the models kept.",
];

export const ADAPTING = [
  "An adapter is made for the scanner of these labelled studies. It serves only if the Dice of people held out does not fall; the model itself does not change.",
  "Studies that are marked for forgetting are left out. You can roll back.",
];

export const ROLLING_BACK = [
  "The adapter before this one serves the site, or the model itself where there is none.",
];

export const NOT_MARKER =
  "Only annotators, reviewers and administrators may mark. Ask one, or sign in as one.";
export const NOT_ADMIN = "Only administrators may do this. Ask one, or sign in as one.";

/** What is said of an order whose answer was lost. */
export const UNSURE =
  "It is not known whether this was done. What you typed is kept: look at the list, and press again if it was not.";
export const TRY_AGAIN = "Try again.";

const WHEN = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export function when(iso: string): string {
  const time = new Date(iso);
  return Number.isNaN(time.getTime()) ? iso : WHEN.format(time);
}

export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  return s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

export function shortId(id: string): string {
  return id.length > 24 ? `${id.slice(0, 8)}…${id.slice(-10)}` : id;
}
