// What the server's REST interface answers; the contract is docs/openapi.json.

export type Kind = "patient" | "study" | "series" | "structure";
export type Reason =
  | "consent_withdrawn"
  | "wrong_patient"
  | "wrong_label"
  | "quality"
  | "retention_expired"
  | "other";
export type RequestState =
  | "proposed"
  | "dismissed"
  | "requested"
  | "approved"
  | "withdrawn"
  | "working"
  | "refused"
  | "fulfilled"
  | "restored"
  | "purged";

export type Level = "none" | "hidden" | "unlearned" | "retrained";

export interface Me {
  name: string;
  signed_in: boolean;
  roles: string[];
  may_mark: boolean;
  may_decide: boolean;
  pacs: boolean;
}

export interface ForgetRequest {
  request_id: string;
  target: { kind: Kind; id: string; issuer: string; model: string };
  study: string;
  reason: Reason;
  note: string;
  state: RequestState;
  needed: Level;
  reached: Level;
  live: boolean;
  source: string;
  marked_by: string;
  agreed_by: string;
  agreed_reason: Reason | "";
  created: string;
  updated: string;
  covered_by: string[];
  message: string;
}

export interface RequestDetail extends ForgetRequest {
  history: { why: string }[];
}

export interface Cover {
  request_id: string;
  target_kind: Kind;
  state: RequestState;
  reason: Reason;
  needed: Level;
  reached: Level;
}

export interface Status {
  marked: boolean;
  covers: Cover[];
  proposals: Cover[];
  series_marked: number;
}

export interface Progress {
  phase: string;
  step: number;
  total: number;
  fraction: number;
  metrics: Record<string, number>;
  eta_seconds: number | null;
}

export interface Run {
  run_id: string;
  kind: string;
  model: string;
  parameters: Record<string, unknown>;
  requested_by: string;
  state: "running" | "done" | "failed" | "cancelled" | "refused" | "interrupted";
  message: string;
  progress: Progress | null;
  started: string;
  ended: string | null;
  cancel_requested: boolean;
}

/** Work of the platform, which knows it until the server is started again. */
export interface Task {
  id: string;
  status: string;
}

export interface Plan {
  requests: { id: string; what: string }[];
  original: string;
  recommended: string;
  level: string;
  ways: { method: string; level: string; seconds: number | null; words: string }[];
  lines: string[];
}

export interface Audit {
  audit_id: string;
  created: string;
  candidate: string;
  original: string;
  outcome: "passed" | "refused" | "inconclusive" | "damaged";
  reached: string;
  needed: string;
  persons: number;
  message: string;
}

export interface Adapter {
  site: string;
  key: string;
  version: string;
  state: string;
  serves: boolean;
  created: string;
  here: boolean;
  why: string;
  about: Record<string, unknown>;
}

export interface Models {
  model: string;
  active: string | null;
}

export interface Outbox {
  waiting: number;
  retrying: number;
  last_error: string;
}

export interface Restored {
  version: string;
  requests: string[];
  lost: string[];
}

export interface WouldPurge {
  destroyed: string[];
  requests: string[];
}

export interface Purged {
  destroyed: string[];
  requests: string[];
  places: { kind: string; where: string; words: string }[];
}
