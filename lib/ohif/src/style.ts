// Own, scoped rules: a class of the host that is missing would silently do nothing.
const RULES = `
.sul,.sul-dialog{--bg:#0b0e2b;--card:#12163a;--field:#05071a;--line:#3a4180;--fg:#f2f4ff;--soft:#b9c0e8;
--accent:#5acce6;--accent-fg:#04141a;--good:#7fe0a8;--warn:#ffd479;--bad:#ff9c9c;--badge:#b3261e;
color:var(--fg);font:13px/1.45 Inter,system-ui,sans-serif;text-align:left}
.sul[data-theme=light],.sul-dialog[data-theme=light]{--bg:#fff;--card:#f2f4fa;--field:#fff;--line:#8790b5;
--fg:#14172b;--soft:#454b6b;--accent:#0b5a8a;--accent-fg:#fff;--good:#0b6b35;--warn:#7a4d00;--bad:#a3150f}
.sul{background:var(--bg);height:100%;overflow-y:auto;padding:6px;position:relative;box-sizing:border-box}
.sul *,.sul-dialog *{box-sizing:border-box}
.sul section{background:var(--card);border:1px solid var(--line);border-radius:6px;margin:0 0 8px;padding:8px}
.sul h2,.sul-dialog h2{font-size:14px;font-weight:600;margin:0 0 6px}
.sul h3{font-size:13px;font-weight:600;margin:8px 0 4px}
.sul p,.sul-dialog p{margin:0 0 6px}
.sul ul,.sul-dialog ul{list-style:none;margin:0;padding:0}
.sul .sul-row{border-top:1px solid var(--line);padding:6px 0}
.sul .soft,.sul-dialog .soft{color:var(--soft);font-size:12px}
.sul .id,.sul-dialog .id{font-family:ui-monospace,monospace;font-size:11px;color:var(--soft);overflow-wrap:anywhere}
.sul .words{overflow-wrap:anywhere}
.sul .sul-chip{border:1px solid currentColor;border-radius:9px;display:inline-block;font-size:11px;font-weight:600;padding:0 7px;margin:1px 0}
.sul .good,.sul-dialog .good{color:var(--good)}.sul .warn,.sul-dialog .warn{color:var(--warn)}
.sul .bad,.sul-dialog .bad{color:var(--bad)}.sul .plain{color:var(--soft)}
.sul button,.sul-dialog button,.sul a.act,.sul-dialog a.act{background:transparent;border:1px solid var(--accent);border-radius:4px;color:var(--accent);
cursor:pointer;display:inline-block;font:inherit;font-size:12px;margin:2px 4px 2px 0;min-height:26px;padding:3px 9px;text-decoration:none}
.sul button.main,.sul-dialog button.main{background:var(--accent);color:var(--accent-fg);font-weight:600}
.sul button.danger,.sul-dialog button.danger{border-color:var(--bad);color:var(--bad)}
.sul button[aria-disabled=true],.sul-dialog button[aria-disabled=true]{background:transparent;border-color:var(--line);color:var(--soft);cursor:not-allowed;font-weight:400}
.sul :focus-visible,.sul-dialog :focus-visible{outline:2px solid var(--warn);outline-offset:1px}
.sul label,.sul-dialog label{display:block;font-size:12px;margin:6px 0 2px}
.sul fieldset{border:1px solid var(--line);border-radius:4px;margin:4px 0;padding:2px 8px}
.sul label.inline,.sul-dialog label.inline{display:block;margin:4px 0}
.sul input[type=checkbox],.sul input[type=radio],.sul-dialog input[type=checkbox]{margin:0;vertical-align:-2px}
.sul input[type=text],.sul input[type=search],.sul select,.sul textarea,.sul-dialog input[type=text],.sul-dialog select,.sul-dialog textarea{
background:var(--field);border:1px solid var(--line);border-radius:4px;color:var(--fg);font:inherit;padding:4px 6px;width:100%}
.sul textarea,.sul-dialog textarea{min-height:44px;resize:vertical}
.sul progress{appearance:none;background:var(--field);border:1px solid var(--line);border-radius:5px;color:var(--accent);display:block;height:10px;margin:4px 0;overflow:hidden;width:100%}
.sul progress::-webkit-progress-bar{background:var(--field)}
.sul progress::-webkit-progress-value{background:var(--accent)}
.sul progress::-moz-progress-bar{background:var(--accent)}
.sul progress:indeterminate{background:repeating-linear-gradient(90deg,var(--field) 0 12px,var(--line) 12px 24px)}
.sul progress:indeterminate::-webkit-progress-bar{background:transparent}
.sul dl{display:grid;gap:1px 8px;grid-template-columns:auto 1fr;margin:4px 0}
.sul dt{color:var(--soft)}.sul dd{margin:0;text-align:right;font-variant-numeric:tabular-nums}
.sul .sul-alert{border:1px solid currentColor;border-radius:6px;margin:0 0 8px;padding:6px 8px}
.sul-dialog{background:var(--card);border:1px solid var(--line);border-radius:8px;margin:auto;max-height:92vh;max-width:min(560px,94vw);overflow:auto;padding:14px 16px;width:100%}
.sul-dialog::backdrop{background:rgba(0,0,0,.6)}
.sul-dialog.wide{max-width:min(1000px,96vw)}
.sul-dialog iframe{background:#fff;border:0;height:74vh;width:100%}
.sul-dialog .sul-plan li{margin:0 0 3px}
.sul-dialog ol{list-style:disc;margin:0 0 6px;padding-left:18px}
.sul-dialog .ends{border-top:1px solid var(--line);margin-top:10px;padding-top:8px;text-align:right}
.sul-hidden{clip-path:inset(50%);height:1px;overflow:hidden;position:absolute;width:1px}
.sul-badge{background:#b3261e;border-radius:3px;color:#fff;font:600 12px/1.4 system-ui,sans-serif;left:50%;padding:1px 8px;
pointer-events:none;position:absolute;top:6px;transform:translateX(-50%);z-index:5}
.sul-cell{background:#b3261e;border-radius:3px;color:#fff;font-size:11px;font-weight:600;padding:1px 6px;white-space:nowrap}
`;

export function addStyle(): void {
  if (document.getElementById("segunlearn-style")) return;
  const style = document.createElement("style");
  style.id = "segunlearn-style";
  style.textContent = RULES;
  document.head.append(style);
}

/** Light or dark, as the host's own surface is; hosts name their themes differently. */
export function themeOf(element: Element | null): "light" | "dark" {
  for (let at = element?.parentElement ?? document.body; at; at = at.parentElement as HTMLElement) {
    const found = /rgba?\((\d+), (\d+), (\d+)(?:, ([\d.]+))?/.exec(getComputedStyle(at).backgroundColor);
    if (!found || Number(found[4] ?? 1) < 0.5) continue;
    const light = 0.299 * Number(found[1]) + 0.587 * Number(found[2]) + 0.114 * Number(found[3]);
    return light > 140 ? "light" : "dark";
  }
  return "dark";
}
