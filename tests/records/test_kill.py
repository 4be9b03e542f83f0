"""Processes marking and training are killed; every acknowledged mark is there afterwards."""

from __future__ import annotations

from pathlib import Path

from records_storm import Storm


def test_no_acknowledged_mark_is_lost(store_place: str, tmp_path: Path) -> None:
    storm = Storm(store_place, tmp_path, studies=150, markers=3, trainers=1, kills=2, seconds=240)
    found = storm.run()
    assert found["acknowledged"] == 150
    assert found["lost"] == 0
    assert found["marked_twice"] == 0
    assert found["kills"] == 2
    assert found["ledger_faults"] == []
    assert found["ledger_rows"] > 0
    assert found["trained_on_after_the_mark"] == 0
