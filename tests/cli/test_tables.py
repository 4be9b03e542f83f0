"""Tables of the commands on a narrow terminal and in a pipe."""

from __future__ import annotations

from uuid import uuid4

import pytest

from segunlearn.cli.tables import print_table

_UID = "2.25.329800735698586629295641978511506172918"
_REQUEST = (uuid4().hex, "study", _UID, "fulfilled_hidden", "consent_withdrawn", "none/unlearned")
_RUN = (12, "2026-11-23T19:00:12+00:00", "unlearn", "segmentation", "done", 7, "ab" * 32)
_STEP = (
    6, "2026-11-23T23:23:09", "ann", "admin", "127.0.0.1", "mark", f"request {uuid4().hex}", "done",
    "needed unlearned, reached none",
)  # fmt: skip
_WEIGHTS = (
    1, "2026-11-23T15:22:59", "command line", "", "", "publish", f"weights {'ab' * 32}", "done",
    f"train of segmentation, run {uuid4().hex}",
)  # fmt: skip
_AUDIT = (uuid4().hex, "2026-11-23T19:00", "segmentation", "v0001", "v0002", "inconclusive", "none")


@pytest.mark.parametrize("row", [_REQUEST, (*_RUN, uuid4().hex), _AUDIT])
@pytest.mark.parametrize("width", ["80", "100", ""])
def test_an_id_stands_in_one_piece(
    row: tuple[object, ...],
    width: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was folded into three; approve, restore and purge want it whole."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if width:
        monkeypatch.setenv("COLUMNS", width)
    print_table([f"column {n}" for n in range(len(row))], [row])
    lines = capsys.readouterr().out.splitlines()
    (identifier,) = (cell for cell in row if isinstance(cell, str) and len(cell) == 32)
    assert any(identifier in line.split() for line in lines)
    assert max(map(len, lines)) <= int(width or 80)
    for cell in row:  # nothing is cut off
        assert str(cell)[:1] in "".join(lines)


@pytest.mark.parametrize("width", ["40", "80", "100", "200", ""])
def test_no_column_of_the_trail_is_lost(
    width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an id in a row, who did what and when had no room at all, and long digests were cut."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if width:
        monkeypatch.setenv("COLUMNS", width)
    headings = ("row", "time", "who", "role", "from", "did", "to what", "outcome", "note")
    print_table(headings, [_STEP, _WEIGHTS])
    shown = capsys.readouterr().out
    for heading in headings:
        assert heading in shown
    for row in (_STEP, _WEIGHTS):
        words = " ".join(map(str, row)).split()
        assert [w for w in words if len(w) <= 6 and w not in shown] == []  # longer ones are folded
    assert "ab" * 32 in "".join(shown.split())
