// The parts of OHIF that are used, as far as every version from 3.10 to 3.14 has them.

interface Service {
  EVENTS?: Record<string, string>;
  subscribe?(event: string, callback: (data: unknown) => void): { unsubscribe(): void };
}

export interface DisplaySet {
  displaySetInstanceUID?: string;
  StudyInstanceUID?: string;
  SeriesInstanceUID?: string;
  SeriesDescription?: string;
  SeriesNumber?: number | string;
  Modality?: string;
  imageIds?: string[];
  instance?: Record<string, unknown>;
  instances?: Record<string, unknown>[];
}

interface GridState {
  activeViewportId?: string;
  viewports?: Map<string, GridViewport> | Record<string, GridViewport>;
}
interface GridViewport {
  viewportId?: string;
  displaySetInstanceUIDs?: string[];
}

export interface Services {
  panelService?: Service & {
    getPanels(side: string): { id: string }[];
    addPanel(side: string, id: string): void;
    activatePanel(id: string, force?: boolean): void;
  };
  viewportGridService?: Service & { getState(): GridState };
  displaySetService?: Service & {
    getActiveDisplaySets?(): DisplaySet[];
    getDisplaySetByUID(uid: string): DisplaySet | undefined;
  };
  cornerstoneViewportService?: {
    getCornerstoneViewport(id: string): { element?: HTMLElement } | undefined;
  };
  segmentationService?: {
    createLabelmapForDisplaySet(displaySet: DisplaySet, options: {
      segmentationId: string; label: string; segments: Record<string, unknown>;
    }): Promise<string>;
    addSegmentationRepresentation(viewport: string, which: {
      segmentationId: string; type: string;
    }): Promise<void>;
    remove(segmentationId: string): void;
  };
  uiNotificationService?: {
    show(message: { title: string; message: string; type: string; duration?: number }): void;
  };
  userAuthenticationService?: {
    getAuthorizationHeader?(): Record<string, string> | string | undefined;
  };
}

export interface ExtensionParams {
  servicesManager: { services: Services };
  commandsManager?: unknown;
  appConfig?: Record<string, unknown>;
  configuration?: { server?: string };
}

export const ID = "@segunlearn/ohif-extension";
export const PANEL = `${ID}.panelModule.forget`;

let services: Services = {};

export const host = (): Services => services;

export function useServices(found: Services): void {
  services = found;
}

export function showPanel(): void {
  services.panelService?.activatePanel(PANEL, true);
}

export function notify(type: "success" | "info" | "warning" | "error", message: string): void {
  try {
    services.uiNotificationService?.show({ title: "Forget & adapt", message, type, duration: 6000 });
  } catch (error) {
    console.warn("SegUnlearn: the viewer shows no notification", error);
  }
}

export function authorization(): Record<string, string> {
  const found = services.userAuthenticationService?.getAuthorizationHeader?.();
  if (!found) return {};
  return typeof found === "string" ? { Authorization: found } : { ...found };
}

/** Subscribes to those of the named events that this host knows. */
export function onEvents(
  service: Service | undefined,
  names: readonly string[],
  callback: () => void,
): (() => void)[] {
  const stops: (() => void)[] = [];
  for (const name of names) {
    const event = service?.EVENTS?.[name];
    const made = event ? service?.subscribe?.(event, callback) : undefined;
    if (made) stops.push(() => made.unsubscribe());
  }
  return stops;
}

export function viewports(): { id: string; displaySets: DisplaySet[] }[] {
  const state = services.viewportGridService?.getState();
  const all = state?.viewports;
  if (!all) return [];
  const entries = all instanceof Map ? [...all.entries()] : Object.entries(all);
  return entries.map(([id, viewport]) => ({
    id: viewport.viewportId ?? id,
    displaySets: (viewport.displaySetInstanceUIDs ?? []).flatMap(
      (uid) => services.displaySetService?.getDisplaySetByUID(uid) ?? [],
    ),
  }));
}

export function activeViewport(): string | undefined {
  return services.viewportGridService?.getState().activeViewportId;
}

export function displaySets(): DisplaySet[] {
  return services.displaySetService?.getActiveDisplaySets?.() ?? [];
}

export function displaySet(uid: string): DisplaySet | undefined {
  return services.displaySetService?.getDisplaySetByUID(uid);
}
