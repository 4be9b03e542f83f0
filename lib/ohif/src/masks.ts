// Masks before and after a forgetting, as two segmentations of the host that can be switched.
import { ApiError, call, foreign, open, query } from "./api";
import { displaySets, host, showPanel, viewports } from "./host";
import type { DisplaySet } from "./host";
import { get, set } from "./store";
import type { Models } from "./types";

export type Which = "before" | "now";

/** Voxels of a label map, and where they lie: LPS in millimetres. */
interface LabelMap {
  size: Vector;
  directions: [Vector, Vector, Vector];
  origin: Vector;
  data: Uint8Array;
}
type Vector = [number, number, number];

export interface Structure {
  name: string;
  before: number;
  now: number;
  /** Dice of the two masks. */
  dice: number;
}

export interface Masks {
  series: string;
  request: string;
  versions: Record<Which, string>;
  shown: Which | "none";
  structures: Structure[];
}

interface Found {
  map: LabelMap;
  version: string;
  labels: Record<string, number>;
}

interface Plane {
  imagePositionPatient: number[];
  rowCosines: number[];
  columnCosines: number[];
  rowPixelSpacing: number;
  columnPixelSpacing: number;
}
interface SegmentImage {
  referencedImageId: string;
  rows: number;
  columns: number;
  getPixelData(): Uint8Array;
}
interface Cornerstone {
  cache: { getImage(id: string): SegmentImage | undefined };
  metaData: { get(kind: string, id: string): Plane | undefined };
}
interface Tools {
  segmentation: {
    state: {
      getSegmentation(id: string): { representationData: { Labelmap: { imageIds: string[] } } };
    };
    config: {
      visibility: {
        setSegmentationRepresentationVisibility(
          viewport: string, which: { segmentationId: string; type: string }, visible: boolean,
        ): void;
      };
    };
  };
}
const library = (): { cornerstone: Cornerstone; cornerstoneTools: Tools } =>
  window as unknown as { cornerstone: Cornerstone; cornerstoneTools: Tools };

const TYPE = "Labelmap";
const BOTH: readonly Which[] = ["before", "now"];
const PATIENCE_MS = 600_000;
const segmentationId = (masks: Pick<Masks, "series">, which: Which): string =>
  `segunlearn-${which}-${masks.series}`;

/** The series as the host shows it, and where; null where it is in no viewport. */
export function placeOf(series: string): { displaySet: DisplaySet; viewports: string[] } | null {
  const isIt = (d: DisplaySet): boolean => d.SeriesInstanceUID === series && !!d.imageIds?.length;
  const displaySet = displaySets().find(isIt);
  const where = viewports().filter((v) => v.displaySets.some(isIt)).map((v) => v.id);
  return displaySet && where.length ? { displaySet, viewports: where } : null;
}

/** Asks the server for both masks and shows them; before a purge, and administrators alone. */
export async function compare(series: string, request: string): Promise<void> {
  const { model } = await call<Models>("GET", "models");
  const before = await infer(model, series, { before: request });
  const now = await infer(model, series, { site: "base" });
  const place = placeOf(series);
  if (!place) return; // the study was left meanwhile
  removeMasks();
  const masks: Masks = {
    series, request, shown: "now", versions: { before: before.version, now: now.version },
    structures: structuresOf(before, now),
  };
  try {
    await draw(masks, "before", before, place);
    await draw(masks, "now", now, place);
  } catch (error) {
    throw new ApiError(501, `This viewer cannot show the masks: ${String(error)}`);
  } finally {
    set({ masks });
  }
  show("now");
  setTimeout(showPanel, 300); // some hosts bring their own panel of segmentations to the front
}

export function show(which: Which | "none"): void {
  const masks = get().masks;
  const place = masks && placeOf(masks.series);
  if (!masks || !place) return;
  const { visibility } = library().cornerstoneTools.segmentation.config;
  for (const id of place.viewports)
    for (const each of BOTH)
      visibility.setSegmentationRepresentationVisibility(
        id, { segmentationId: segmentationId(masks, each), type: TYPE }, each === which,
      );
  set({ masks: { ...masks, shown: which } });
}

export function removeMasks(): void {
  const masks = get().masks;
  if (!masks) return;
  for (const which of BOTH) host().segmentationService?.remove(segmentationId(masks, which));
  set({ masks: null });
}

/** What is restored or purged is not shown any longer. */
export function removeStaleMasks(): void {
  const masks = get().masks;
  const request = get().requests.find((r) => r.request_id === masks?.request);
  if (masks && request && request.state !== "fulfilled") removeMasks();
}

async function infer(model: string, image: string, more: Record<string, string>): Promise<Found> {
  const body = new FormData();
  body.append("params", JSON.stringify({ result_extension: ".nrrd", result_dtype: "uint8", ...more }));
  const answer = await open(`infer/${model}${query({ image })}`, {
    method: "POST", body, signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const parts = await answer.formData().catch(() => {
    throw foreign();
  });
  const params = JSON.parse(String(parts.get("params"))) as {
    version: string; label_names: Record<string, number>;
  };
  const map = await readNrrd(parts.get("image") as File);
  return { map, version: params.version, labels: params.label_names };
}

/** NRRD as the server writes it: three axes, gzip, directions and origin in LPS. */
export async function readNrrd(file: Blob): Promise<LabelMap> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let end = 0;
  while (end < bytes.length && !(bytes[end] === 10 && bytes[end + 1] === 10)) end += 1;
  const lines = new TextDecoder().decode(bytes.subarray(0, end)).split("\n");
  const field = (name: string): string =>
    lines.find((l) => l.startsWith(`${name}:`))?.slice(name.length + 1).trim() ?? "";
  const numbers = field("space directions").match(/[-+\d.eE]+/g)?.map(Number) ?? [];
  const vector = (values: number[]): Vector => values.slice(0, 3) as Vector;
  const packed = new Blob([bytes.subarray(end + 2)]);
  const data = field("encoding").startsWith("gz")
    ? await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer()
    : await packed.arrayBuffer();
  return {
    size: vector(field("sizes").split(/\s+/).map(Number)),
    directions: [vector(numbers), vector(numbers.slice(3)), vector(numbers.slice(6))],
    origin: vector(field("space origin").match(/[-+\d.eE]+/g)?.map(Number) ?? []),
    data: new Uint8Array(data),
  };
}

async function draw(
  masks: Masks, which: Which, found: Found, place: NonNullable<ReturnType<typeof placeOf>>,
): Promise<void> {
  const service = host().segmentationService;
  if (!service) throw new Error("the viewer has no segmentations");
  const id = segmentationId(masks, which);
  const segments = Object.fromEntries(Object.entries(found.labels).map(
    ([label, value], i) => [value, { label, segmentIndex: value, active: i === 0 }],
  ));
  await service.createLabelmapForDisplaySet(place.displaySet, {
    segmentationId: id, segments,
    label: `${which === "before" ? "Before forgetting" : "Now"} (${found.version})`,
  });
  const { cornerstone, cornerstoneTools } = library();
  const made = cornerstoneTools.segmentation.state.getSegmentation(id);
  for (const imageId of made.representationData.Labelmap.imageIds) {
    const image = cornerstone.cache.getImage(imageId);
    const plane = image && cornerstone.metaData.get("imagePlaneModule", image.referencedImageId);
    if (image && plane) paint(found.map, plane, image);
  }
  for (const viewport of place.viewports)
    await service.addSegmentationRepresentation(viewport, { segmentationId: id, type: TYPE });
}

/** Nearest voxel of the label map for each pixel of a slice, however the two lie to each other. */
function paint(map: LabelMap, plane: Plane, image: SegmentImage): void {
  const into = inverse(map.directions);
  const at = plane.imagePositionPatient.map((p, i) => p - (map.origin[i] as number));
  const start = into(at as Vector);
  const column = into(plane.rowCosines.map((v) => v * plane.columnPixelSpacing) as Vector);
  const row = into(plane.columnCosines.map((v) => v * plane.rowPixelSpacing) as Vector);
  const [nx, ny, nz] = map.size;
  const pixels = image.getPixelData();
  for (let r = 0, p = 0; r < image.rows; r += 1) {
    for (let c = 0; c < image.columns; c += 1, p += 1) {
      const i = Math.round(start[0] + c * column[0] + r * row[0]);
      const j = Math.round(start[1] + c * column[1] + r * row[1]);
      const k = Math.round(start[2] + c * column[2] + r * row[2]);
      const inside = i >= 0 && j >= 0 && k >= 0 && i < nx && j < ny && k < nz;
      pixels[p] = inside ? (map.data[i + nx * (j + ny * k)] as number) : 0;
    }
  }
}

/** From millimetres to voxels: the inverse of the matrix with these columns. */
function inverse([a, b, c]: [Vector, Vector, Vector]): (v: Vector) => Vector {
  const rows = [cross(b, c), cross(c, a), cross(a, b)];
  const determinant = dot(a, rows[0] as Vector);
  return (v) => rows.map((r) => dot(r, v) / determinant) as Vector;
}
const dot = (a: Vector, b: Vector): number => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a: Vector, b: Vector): Vector => [
  a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0],
];

function structuresOf(before: Found, now: Found): Structure[] {
  const names = [...new Set([...Object.keys(before.labels), ...Object.keys(now.labels)])];
  const a = before.map.data;
  const b = now.map.data;
  return names.map((name) => {
    const [x, y] = [before.labels[name] ?? -1, now.labels[name] ?? -1];
    let [inBefore, inNow, inBoth] = [0, 0, 0];
    for (let i = 0; i < a.length; i += 1) {
      if (a[i] === x) inBefore += 1;
      if (b[i] === y) inNow += 1;
      if (a[i] === x && b[i] === y) inBoth += 1;
    }
    const sum = inBefore + inNow;
    return { name, before: inBefore, now: inNow, dice: sum ? (2 * inBoth) / sum : 1 };
  });
}
