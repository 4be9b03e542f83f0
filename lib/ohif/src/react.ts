// The host's own React: a second copy would break its hooks. Hosts hand it to createLogoComponentFn.
import type * as ReactTypes from "react";

type HostReact = typeof ReactTypes;

export let React: HostReact = (globalThis as { react?: HostReact }).react as HostReact;

export function captureReact(found: HostReact | undefined): void {
  if (found) React ??= found;
}
