"""A disk without room: what was acknowledged stays, what was not is not there at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from segunlearn.app.home_copy import copy_home
from segunlearn.app.options import Home
from segunlearn.app.records import Records

#: Marks studies until the files may grow no more, then says what was acknowledged and how it ended.
FILL = """
import json, resource, signal, sys
from pathlib import Path
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.errors import SegUnlearnError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
records = Records(Home(Path(sys.argv[1])))
records.store
limit = int(sys.argv[2]) << 10
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
marked, failures = [], []
for number in range(3000):
    try:
        request, _ = records.forget_set.mark(
            "study", f"1.7.{number}", "consent_withdrawn", actor="ann")
        marked.append(request.request_id)
    except SegUnlearnError as error:
        failures.append([error.http_status, str(error)])
        if len(failures) == 5:
            break
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
request, _ = records.forget_set.mark("study", "1.8", "consent_withdrawn", actor="ann")
print(json.dumps([marked + [request.request_id], failures]))
"""


def test_marks_on_a_full_disk(tmp_path: Path) -> None:
    """Refused with a sentence; as soon as there is room the same process marks again."""
    home = tmp_path / "home"
    Records(Home(home)).store.close()
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(home), "400"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    acknowledged, failures = json.loads(done.stdout)
    assert len(failures) == 5  # the disk was full
    for status, sentence in failures:
        assert status == 503
        assert "nothing was changed" in sentence
    records = Records(Home(home))
    kept = [r.request_id for r in records.forget_set.list(limit=1000)]
    kept += [r.request_id for r in records.forget_set.list(limit=1000, offset=1000)]
    assert sorted(kept) == sorted(acknowledged)
    rows = list(records.trail.every())
    assert [r.what for r in rows] == acknowledged
    assert list(records.trail.verify()) == list(records.ledger.verify()) == []
    records.store.close()


def test_a_copy_that_found_no_room_is_none(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    records = Records(home)
    records.forget_set.mark("study", "1.2", "consent_withdrawn", actor="ann")
    records.store.close()
    (home.root / "labels").mkdir()
    (home.root / "labels" / "large.nii.gz").write_bytes(bytes(1 << 20))
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19)); "
        "from segunlearn.cli import main; sys.argv[:1] = ['segunlearn']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "backup", str(tmp_path / "copy"), "--home", str(home.root)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "copy" / "manifest.json").exists()
    copy_home(home, tmp_path / "another")
