"""A disk that is, or becomes, read-only; and a file system that is read-only around the home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app_sources import make_study, publish_tiny, write_files
from segunlearn.app.options import Home
from segunlearn.app.records import Records

#: A mount namespace of its own; a container that forbids it cannot run these tests.
APART = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
ALLOWED = (
    subprocess.run(
        [*APART, "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    ).returncode
    == 0
    if os.path.exists("/usr/bin/unshare")  # noqa: PTH110
    else False
)
pytestmark = pytest.mark.skipif(not ALLOWED, reason="no mount namespaces here")

#: Marks, makes the disk read-only as the kernel does at an error, marks, asks, makes it good again.
MARK = """
import json, subprocess, sys
from pathlib import Path
from segunlearn.app.home_tidy import tidy
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.security import health
from segunlearn.errors import SegUnlearnError
home = Home(Path(sys.argv[1]))
records = Records(home)
def mark(number):
    try:
        records.forget_set.mark("study", f"1.7.{number}", "consent_withdrawn", actor="ann")
        return "marked"
    except SegUnlearnError as error:
        return [error.http_status, str(error)]
def remount(how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(home.root)], check=True)
def asked():
    try:
        return len(records.forget_set.list())
    except SegUnlearnError as error:
        return error.http_status
said = [mark(0)]
records.store.close()  # the kernel makes no disk read-only that is being written
remount("ro")
records = Records(home)
said += [mark(1), asked()]
try:
    health._ask_home(type("App", (), {"home": home}))
except SegUnlearnError as error:
    said.append(str(error))
remount("rw")
said += [mark(2), asked(), list(records.trail.verify())]
print(json.dumps(said))
"""


def apart(script: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a disk of its own where the home lies, and Python's own words."""
    prepare = f'mount -t tmpfs -o size=64m none "{home}" && exec "$@"'
    return subprocess.run(
        [*APART, "sh", "-c", prepare, "sh", sys.executable, "-c", script, str(home), *words],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    """Marks are refused with a sentence, questions are answered; with the disk good all goes on."""
    done = apart(MARK, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    first, refused, listed, told, again, at_last, faults = json.loads(done.stdout)
    assert (first, again, at_last, faults) == ("marked", "marked", 2, [])
    assert refused[0] == 503, refused
    assert listed in (1, 503)
    assert "cannot be written" in told


SERVE = """
import sys, threading, time, urllib.request
from pathlib import Path
home, studies = sys.argv[1:3]
def ask(path, method="GET"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=100) as answer:
        return answer.status, answer.read()
import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
def look():
    for _ in range(600):
        try:
            ask("/health/live")
            break
        except OSError:
            time.sleep(0.2)
    try:
        Path("/tmp/written").write_text("x")
        print("the root can be written", flush=True)
    except OSError as error:
        print("root", error.strerror, flush=True)
    print("ready", ask("/health/ready")[0], flush=True)
    print("infer", ask("/infer/segmentation?image=person0&output=json", "POST")[0], flush=True)
    import os, signal
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=look, daemon=True).start()
sys.argv = ["segunlearn", "serve", "--studies", studies, "--home", home, "--port", str(port)]
from segunlearn.cli import main
main()
"""


@pytest.mark.slow
def test_a_server_needs_to_write_nothing_but_its_home(tmp_path: Path) -> None:
    """As its container is run: ``read_only``, an account of its own, no capability needed."""
    write_files(tmp_path / "studies", [make_study(0)])
    home = tmp_path / "home"
    publish_tiny(home)
    prepare = (
        f'mount --bind "{home}" "{home}" && mount -o remount,bind,ro / && '
        '{ grep -q " /tmp " /proc/mounts && mount -o remount,bind,ro /tmp; true; } && exec "$@"'
    )
    done = subprocess.run(
        [*APART, "sh", "-c", prepare, "sh", sys.executable, "-c", SERVE, str(home),
         str(tmp_path / "studies")],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = [
        line for line in done.stdout.splitlines() if line.startswith(("root", "ready", "infer"))
    ]
    assert told == ["root Read-only file system", "ready 200", "infer 200"], done.stdout[-3000:]
    assert "Read-only file system" not in done.stderr, done.stderr[-3000:]
    Records(Home(home)).store.close()
