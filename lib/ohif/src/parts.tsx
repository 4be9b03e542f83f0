// Small pieces that the panel and the dialogs are made of.
import { address } from "./api";
import { React } from "./react";
import { useDraft, useStore } from "./store";
import type { Cover } from "./types";
import { TONES, standingOf, stateOf } from "./words";

interface ActProps {
  label: string;
  act: () => void;
  /** Why it cannot be done; said on hover, to screen readers and on a click. */
  why?: string | undefined;
  look?: "main" | "danger";
  name?: string;
  about?: string;
}

export function Act({ label, act, why, look, name, about }: ActProps): JSX.Element {
  const [told, tell] = React.useState(false);
  return (
    <React.Fragment>
      <button
        type="button"
        className={look}
        data-cy={name}
        aria-disabled={why ? true : undefined}
        aria-label={about ? `${label}: ${about}` : undefined}
        title={why}
        onClick={() => (why ? tell(true) : act())}
      >
        {label}
      </button>
      {why && told ? <p className="warn" role="status">{why}</p> : null}
    </React.Fragment>
  );
}

export function Chip({ about }: {
  about: Pick<Cover, "request_id" | "state" | "needed" | "reached">;
}): JSX.Element {
  const words = useStore((s) => stateOf(about, s.runs));
  return <span className={`sul-chip ${TONES[standingOf(about)]}`} data-cy="sul-chip">{words}</span>;
}

interface FieldProps {
  draft: string;
  label: string;
  name: string;
  rows?: boolean;
  limit?: number;
}

/** A text that survives errors, other panels and reloads. */
export function Field({ draft, label, name, rows, limit = 2000 }: FieldProps): JSX.Element {
  const [text, setText] = useDraft(draft);
  const shared = {
    "value": text,
    "data-cy": name,
    "maxLength": limit,
    "autoComplete": "off",
    "onChange": (e: { target: { value: string } }) => setText(e.target.value),
  };
  return (
    <label>
      {label}
      {rows ? <textarea {...shared} /> : <input type="text" {...shared} />}
    </label>
  );
}

export function Fault(): JSX.Element | null {
  const fault = useStore((s) => s.fault);
  return fault ? <p className="bad words" role="alert" data-cy="sul-fault">{fault}</p> : null;
}

export function SignIn(): JSX.Element {
  return (
    <a className="act" href={address("login")} target="_blank" rel="noopener" data-cy="sul-sign-in">
      Sign in<span className="sul-hidden"> (new tab)</span>
    </a>
  );
}
