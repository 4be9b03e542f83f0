// The server's REST interface. Every failure becomes an ApiError with a sentence for a person.
import { authorization } from "./host";

export class ApiError extends Error {
  constructor(
    /** HTTP status; 0: no answer at all. */
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

const AWAY = "The server does not answer. What you typed is kept; this goes on by itself when it is back.";
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
    throw new ApiError(0, error instanceof DOMException && error.name === "TimeoutError"
      ? "The server took too long to answer. Try again."
      : AWAY);
  }
  if (answer.ok) return answer;
  throw new ApiError(answer.status, await reasonOf(answer));
}

export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const init: RequestInit = { method, signal: AbortSignal.timeout(120_000) };
  if (method !== "GET" && method !== "DELETE") {
    init.body = JSON.stringify(body ?? {});
    init.headers = { "Content-Type": "application/json" };
  }
  const answer = await open(path, init);
  return (await answer.json()) as T;
}

async function reasonOf(answer: Response): Promise<string> {
  if (answer.status === 401) return EXPIRED;
  const type = answer.headers.get("content-type") ?? "";
  if (type.includes("json")) {
    const { detail } = (await answer.json().catch(() => ({}))) as { detail?: unknown };
    if (typeof detail === "string") return detail.charAt(0).toUpperCase() + detail.slice(1);
  }
  if (answer.status >= 502 && answer.status <= 504) return AWAY;
  return `The server answered ${answer.status} without a reason. Look into its log.`;
}

/** An identifier as a path segment; slashes of PatientIDs stay, as the server refuses encoded ones. */
export const segment = (id: string): string => encodeURIComponent(id).replace(/%2F/gi, "/");

export function query(values: Record<string, string | number | readonly string[]>): string {
  const found = new URLSearchParams();
  for (const [key, value] of Object.entries(values))
    for (const item of Array.isArray(value) ? value : [value]) found.append(key, String(item));
  return `?${found.toString()}`;
}
