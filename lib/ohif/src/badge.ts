// "FORGET SET" on every viewport that shows something marked. Drawn into the viewport's own element,
// as the host's overlay is drawn anew only when the image changes.
import { host, viewports } from "./host";
import { get, subscribe } from "./store";

const EVERY_MS = 1000;

function draw(): void {
  const { status } = get();
  for (const { id, displaySets } of viewports()) {
    const element = host().cornerstoneViewportService?.getCornerstoneViewport(id)?.element;
    if (!element) continue;
    const marked = displaySets.some(
      (d) => status[d.SeriesInstanceUID ?? ""]?.marked || status[d.StudyInstanceUID ?? ""]?.marked,
    );
    const old = element.querySelector(":scope > .sul-badge");
    if (!marked) old?.remove();
    else if (!old) {
      const badge = document.createElement("div");
      badge.className = "sul-badge";
      badge.dataset["cy"] = "sul-badge";
      badge.textContent = "FORGET SET";
      element.append(badge);
    }
  }
}

/** Viewports come and go with layouts and tools, and no event of all hosts tells of each. */
export function startBadges(): () => void {
  const timer = setInterval(draw, EVERY_MS);
  const stop = subscribe(draw);
  draw();
  return () => {
    clearInterval(timer);
    stop();
    for (const badge of document.querySelectorAll(".sul-badge")) badge.remove();
  };
}
