// The extension. Hosts call these hooks without `this`, some of them at every entry into a mode.
import { leave } from "./actions";
import { watchActive } from "./active";
import { findServer } from "./api";
import { startBadges } from "./badge";
import { forgetKnown } from "./column";
import { ID, PANEL, host, onEvents, useServices } from "./host";
import type { ExtensionParams } from "./host";
import { removeMasks } from "./masks";
import { startLive } from "./live";
import { commands, customizations } from "./menus";
import { Panel } from "./panel";
import { captureReact } from "./react";
import { failed, lookAtStudy } from "./refresh";
import { loadSupport } from "./store";
import { addStyle } from "./style";

type LogoComponent = (react: unknown, ...rest: unknown[]) => unknown;

let stops: (() => void)[] = [];
let adding = false;

function preRegistration({ servicesManager, appConfig, configuration }: ExtensionParams): void {
  useServices(servicesManager.services);
  findServer(import.meta.url, configuration?.server);
  addStyle();
  if (!appConfig) return;
  const labels = (appConfig["whiteLabeling"] ?? {}) as { createLogoComponentFn?: LogoComponent };
  const before = labels.createLogoComponentFn;
  const createLogoComponentFn: LogoComponent = (react, ...rest) => {
    captureReact(react as Parameters<typeof captureReact>[0]);
    return before?.(react, ...rest);
  };
  appConfig["whiteLabeling"] = { ...labels, createLogoComponentFn };
}

/** The mode sets its own panels after onModeEnter, so ours is added when they are there. */
function addPanel(): void {
  const panels = host().panelService;
  const there = panels?.getPanels("right") ?? [];
  if (adding || !there.length || there.some((p) => p.id === PANEL)) return;
  adding = true;
  try {
    panels?.addPanel("right", PANEL);
  } finally {
    adding = false;
  }
}

function onModeEnter(): void {
  onModeExit();
  forgetKnown();
  loadSupport();
  stops = [
    ...onEvents(host().panelService, ["PANELS_CHANGED"], addPanel),
    watchActive(() => void lookAtStudy().catch(failed)),
    startLive(),
    startBadges(),
  ];
  addPanel();
}

function onModeExit(): void {
  for (const stop of stops) stop();
  stops = [];
  removeMasks();
  forgetKnown();
  leave();
}

export default {
  id: ID,
  preRegistration,
  onModeEnter,
  onModeExit,
  getPanelModule: () => [
    {
      name: "forget",
      iconName: "Delete",
      iconLabel: "Forget & adapt",
      label: "Forget & adapt",
      component: Panel,
    },
  ],
  getCommandsModule: commands,
  getCustomizationModule: () => [{ name: "global", value: customizations() }],
};
