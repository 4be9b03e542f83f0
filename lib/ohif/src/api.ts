// The server's REST interface. Every failure becomes an ApiError with a sentence for a person.
import { authorization } from "./host";

export class ApiError extends Error {
  constructor(
    /** HTTP status; 0: no answer at all. */
    readonly status: number,
    readonly what: string,
    /** What becomes of a question that the server itself did not answer; of an order nobody knows. */
    readonly advice = "",
  ) {
    super(advice ? `${what} ${advice}` : what);
  }
}

const away = (status: number): ApiError => new ApiError(
  status, "The server does not answer.",
  "What you typed is kept; this goes on by itself when it is back.",
);
export const foreign = (): ApiError => new ApiError(
  502, "Something else answered in the server's place, such as a proxy or a page to sign in.",
  "What you typed is kept. If this stays, load the page again.",
);
const late = (status: number): ApiError =>
  new ApiError(status, "The server took too long to answer.", "Try again.");
const EXPIRED = "Your session has expired. Sign in again; what you typed is kept.";

let base = "/";

/** The module lies at <root>/segunlearn/extension.js, so the root is two steps up. */
export function findServer(moduleUrl: string | undefined, configured: string | undefined): void {
  const here = globalThis.location?.href;
  if (configured) base = new URL(`${configured.replace(/\/$/, "")}/`, here).href;
  else if (moduleUrl?.startsWith("http")) base = new URL("..", moduleUrl).href;
  else base = new URL("/", here).href;
}

export const address = (path: string): string => new URL(path, base).href;

const lost = (error: unknown): ApiError =>
  error instanceof DOMException && error.name === "TimeoutError" ? late(0) : away(0);

export async function open(path: string, init: RequestInit): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(address(path), {
      credentials: "same-origin",
      cache: "no-store",
      ...init,
      headers: { ...authorization(), ...(init.headers as Record<string, string>) },
    });
  } catch (error) {
    throw lost(error);
  }
  if (answer.ok) return answer;
  throw await refusal(answer);
}

export async function read(method: string, path: string, body?: unknown): Promise<string> {
  const init: RequestInit = { method, signal: AbortSignal.timeout(120_000) };
  if (method !== "GET" && method !== "DELETE") {
    init.body = JSON.stringify(body ?? {});
    init.headers = { "Content-Type": "application/json" };
  }
  const answer = await open(path, init);
  try {
    return await answer.text();
  } catch (error) {
    throw lost(error); // cut off on the way
  }
}

export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const text = await read(method, path, body);
  try {
    return JSON.parse(text) as T;
  } catch {
    throw foreign();
  }
}

/**
 * For people, with other advice where the server itself did not answer; a mistake of this page,
 * which must not stop it, goes to the console, too.
 */
export function sentence(error: unknown, advice = ""): string {
  if (error instanceof ApiError) return advice && error.advice ? `${error.what} ${advice}` : error.message;
  console.error("SegUnlearn:", error);
  return `This page cannot understand what the server answered (${String(error)}).`;
}

async function refusal(answer: Response): Promise<ApiError> {
  const { status } = answer;
  if (status === 401) return new ApiError(status, EXPIRED);
  const type = answer.headers.get("content-type") ?? "";
  if (type.includes("json")) {
    const found = (await answer.json().catch(() => null)) as { detail?: unknown } | null;
    const detail = found?.detail;
    if (typeof detail === "string")
      return new ApiError(status, detail.charAt(0).toUpperCase() + detail.slice(1));
  }
  if (status === 504) return late(status);
  if (status === 502 || status === 503) return away(status);
  return new ApiError(status, `The server answered ${status} without a reason. Look into its log.`);
}

/** An identifier as a path segment; slashes of PatientIDs stay, as the server refuses encoded ones. */
export const segment = (id: string): string => encodeURIComponent(id).replace(/%2F/gi, "/");

export function query(values: Record<string, string | number | readonly string[]>): string {
  const found = new URLSearchParams();
  for (const [key, value] of Object.entries(values))
    for (const item of Array.isArray(value) ? value : [value]) found.append(key, String(item));
  return `?${found.toString()}`;
}
