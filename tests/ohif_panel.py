"""What the panel does without a browser, told by a server that a script stands for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from conftest import missing

SOURCE = Path(__file__).parents[1] / "lib" / "ohif"
_PARTS = (
    "actions", "active", "api", "dialogs", "extension", "forgetset", "host", "live", "menus",
    "refresh", "runs", "store", "words",
)  # fmt: skip

#: A page, a clock that is 50 times as fast, and a server whose answers are functions by path.
#: ``drawn`` lists what a component shows: no hook keeps anything, and no effect runs.
_PAGE = """
const FAST = 50, began = Date.now(), [now, later, every] = [Date.now, setTimeout, setInterval];
Date.now = () => began + (now() - began) * FAST;
globalThis.setTimeout = (f, ms, ...more) => later(f, ms / FAST, ...more);
globalThis.setInterval = (f, ms, ...more) => every(f, ms / FAST, ...more);
const listeners = {};
globalThis.document = {
  hidden: false, getElementById: () => null, querySelector: () => null, querySelectorAll: () => [],
  addEventListener: (name, f) => { listeners[name] = f; }, removeEventListener() {},
};
globalThis.window = globalThis;
globalThis.location = {href: "http://server/ohif/viewer", search: ""};
globalThis.sessionStorage = {getItem: () => null, setItem() {}};
const asked = [];
const page = {total: 0, requests: []};
const answers = {
  "whoami": () => ({name: "", may_mark: true, may_decide: true, pacs: false, roles: []}),
  "forget/requests": () => page, "forget/status": () => ({}), "runs": () => [],
  "audits": () => ({audits: []}), "adapters": () => ({adapters: []}),
};
const json = (found, status = 200) => new Response(
  JSON.stringify(found), {status, headers: {"content-type": "application/json"}});
const html = (status = 200) => new Response(
  "<html>sign in</html>", {status, headers: {"content-type": "text/html"}});
globalThis.fetch = async (url, init) => {
  const {pathname, searchParams} = new URL(url);
  const path = pathname.slice(1);
  asked.push(path + new URL(url).search);
  const answer = answers[path];
  if (!answer) return json({detail: "not here"}, 404);
  const found = await answer(searchParams, init);
  return found instanceof Response ? found : json(found);
};
const until = async (what, seconds = 20) => {
  for (const end = now() + seconds * 1000; now() < end; await new Promise(f => later(f, 5)))
    if (what()) return true;
  return false;
};
const request = (n, state, more = {}) => ({
  request_id: String(n), state, created: `2026-01-01T00:00:${String(n).padStart(6, "0")}`,
  target: {kind: "study", id: `1.${n}`, issuer: "", model: ""}, needed: "unlearned",
  reached: "none", reason: "quality", ...more,
});
const run = (id, state, more = {}) => ({
  run_id: id, kind: "unlearn", state, message: "", progress: null, parameters: {},
  started: `2026-01-01T00:00:${id}`, ended: null, ...more,
});
globalThis.react = {
  Fragment: "", createElement: (type, props, ...children) => ({type, props: {...props, children}}),
  useState: (first) => [first, () => {}], useRef: () => ({current: null}), useEffect() {},
  useSyncExternalStore: (_, found) => found(),
};
const drawn = (...nodes) => nodes.flat(Infinity).filter(n => n && n !== true).flatMap(n =>
  typeof n.type === "function" ? drawn(n.type(n.props)) : [n, ...drawn(n.props?.children ?? [])]);
const text = (...nodes) => drawn(nodes).filter(n => typeof n === "string").join("");
const button = (all, label) => all.find(n => n.type === "button" && text(n) === label)?.props;
const say = (found) => { console.log(JSON.stringify(found)); process.exit(0); };
"""


class Panel:
    """The panel's modules as one file for node."""

    def __init__(self, folder: Path) -> None:
        node = shutil.which("node")
        if node is None:
            missing("node is not installed")
        if not (SOURCE / "node_modules" / "esbuild").is_dir():
            missing("the tools of lib/ohif are not installed (make ohif)")
        self._node, self._folder = str(node), folder
        entry = folder / "entry.ts"
        lines = [f'export * as {p} from "{SOURCE / "src" / p}";' for p in _PARTS]
        entry.write_text("\n".join(lines))
        self._run(
            str(SOURCE / "node_modules" / "esbuild" / "bin" / "esbuild"), str(entry), "--bundle",
            "--format=esm", "--jsx=transform", f"--outfile={folder / 'panel.mjs'}",
        )  # fmt: skip

    def does(self, script: str) -> Any:
        """Run a script beside the panel's modules; returns what it says."""
        file = self._folder / "script.mjs"
        file.write_text(
            f'{_PAGE}\nconst {{{", ".join(_PARTS)}}} = await import("./panel.mjs");\n'
            f'api.findServer(undefined, "/");\nconst {{get, set}} = store;\n{{\n{script}\n}}\n'
        )
        return json.loads(self._run(self._node, str(file)).splitlines()[-1])

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
