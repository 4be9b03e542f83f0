// What the viewer shows now: the study, its series and its patient.
import { activeViewport, displaySets, host, onEvents, viewports } from "./host";
import type { DisplaySet } from "./host";
import { get, set } from "./store";
import type { About, Active, Target } from "./store";

/** Made from images; they go with their study. */
const DERIVED = new Set(["SEG", "SR", "KO", "PR", "RTSTRUCT", "RTDOSE", "RTPLAN", "DOC"]);

function text(value: unknown): string {
  if (typeof value === "string") return value.trim();
  if (typeof value === "number") return String(value);
  if (Array.isArray(value)) return text(value[0]);
  if (value && typeof value === "object") return text((value as { Alphabetic?: unknown }).Alphabetic);
  return "";
}

export function aboutOf(found: DisplaySet | undefined): About {
  const header = found?.instances?.[0] ?? found?.instance ?? {};
  return {
    words: text(header["StudyDescription"]) || "Study without description",
    patient: text(header["PatientName"]).replace(/\^+/g, ", ").replace(/[, ]+$/, ""),
    patientId: text(header["PatientID"]),
    issuer: text(header["IssuerOfPatientID"]),
    date: text(header["StudyDate"]).replace(/^(\d{4})(\d\d)(\d\d)$/, "$1-$2-$3"),
  };
}

export const whose = (about: About): string =>
  [about.patient, about.patientId, about.date].filter(Boolean).join(" · ");

export const wordsOf = (found: DisplaySet): string =>
  [text(found.Modality), text(found.SeriesDescription) || "no description"].join(" · ");

function look(): Active | null {
  const all = displaySets();
  const grid = viewports();
  const here = grid.find((v) => v.id === activeViewport()) ?? grid[0];
  const shown = here?.displaySets[0] ?? grid.flatMap((v) => v.displaySets)[0] ?? all[0];
  const asked = new URLSearchParams(location.search).getAll("StudyInstanceUIDs")[0]?.split(",")[0];
  const study = shown?.StudyInstanceUID ?? asked ?? "";
  if (!study) return null;
  const own = all.filter((d) => d.StudyInstanceUID === study);
  const series = new Map<string, string>();
  for (const found of own)
    if (found.SeriesInstanceUID && !DERIVED.has(found.Modality ?? ""))
      series.set(found.SeriesInstanceUID, series.get(found.SeriesInstanceUID) ?? wordsOf(found));
  return {
    study,
    ...aboutOf(shown ?? own[0]),
    series: [...series].map(([uid, words]) => ({ uid, words })),
    shown: shown?.SeriesInstanceUID ?? "",
  };
}

/** Every study that the viewer has loaded, and their series; what lies in viewports is among them. */
export function loaded(): { studies: string[]; series: string[] } {
  const own = displaySets().filter((d) => !DERIVED.has(d.Modality ?? ""));
  return {
    studies: own.flatMap((d) => d.StudyInstanceUID ?? []),
    series: own.flatMap((d) => d.SeriesInstanceUID ?? []),
  };
}

export function watchActive(onChange: () => void): () => void {
  let last = "";
  const update = (): void => {
    const found = look();
    const now = JSON.stringify(found);
    if (now === last) return;
    last = now;
    const same = found?.study === get().active?.study;
    set({ active: found, ...(same ? {} : { statusFault: "" }) });
    onChange();
  };
  const stops = [
    ...onEvents(host().viewportGridService, [
      "ACTIVE_VIEWPORT_ID_CHANGED", "GRID_STATE_CHANGED", "LAYOUT_CHANGED", "VIEWPORTS_READY",
    ], update),
    ...onEvents(host().displaySetService, [
      "DISPLAY_SETS_ADDED", "DISPLAY_SETS_CHANGED", "DISPLAY_SETS_REMOVED",
    ], update),
  ];
  update();
  return () => {
    for (const stop of stops) stop();
  };
}

export function studyTarget(): Target | null {
  const active = get().active;
  return active && { kind: "study", id: active.study, issuer: "", words: active.words, whose: whose(active) };
}

export function patientTarget(): Target | null {
  const active = get().active;
  if (!active?.patientId) return null;
  const words = [active.patient, active.patientId].filter(Boolean).join(", ");
  return { kind: "patient", id: active.patientId, issuer: active.issuer, words, whose: "" };
}

export const seriesTarget = (uid: string, words: string, about: About): Target => ({
  kind: "series", id: uid, issuer: "", words, whose: whose(about),
});
