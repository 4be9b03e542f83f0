// Keeps the keyboard's focus in the panel when what had it goes, as a button that has done its work.

/** What had the focus last, and what it stands in, innermost first. */
let way: HTMLElement[] = [];

/** What had it, if it is left; else its row, its section or the panel. */
function focusNearest(): boolean {
  const place = way.find(
    (e, i) => e.isConnected && (i === 0 || e.matches(".sul-row, section, .sul")),
  );
  if (!place) return false;
  if (place !== way[0] && !place.hasAttribute("tabindex")) place.tabIndex = -1;
  place.focus({ preventScroll: true }); // a run that began meanwhile may be what is looked at
  return true;
}

/** Gives the focus back when a dialog has closed. */
export function focusBack(before: HTMLElement | null): void {
  if (before?.isConnected && before !== document.body) before.focus();
  else if (!focusNearest()) document.querySelector<HTMLElement>(".sul")?.focus();
}

export function keepFocus(panel: HTMLElement): () => void {
  const came = (event: FocusEvent): void => {
    const found: HTMLElement[] = [];
    for (let at = event.target as HTMLElement | null; at; at = at.parentElement) {
      if (at.tagName === "DIALOG") return;
      found.push(at);
      if (at === panel) break;
    }
    way = found;
  };
  const left = (event: FocusEvent): void =>
    queueMicrotask(() => { // a person who goes elsewhere is not called back
      const gone = way[0] === event.target && way[0] !== document.activeElement;
      if (gone && way[0]?.isConnected && !panel.querySelector("dialog[open]")) way = [];
    });
  const observer = new MutationObserver(() => {
    const lost = document.activeElement === document.body;
    if (lost && way.length && !way[0]?.isConnected) focusNearest();
  });
  panel.addEventListener("focusin", came);
  panel.addEventListener("focusout", left);
  observer.observe(panel, { childList: true, subtree: true });
  return () => {
    panel.removeEventListener("focusin", came);
    panel.removeEventListener("focusout", left);
    observer.disconnect();
    way = [];
  };
}
