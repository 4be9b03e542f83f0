"""Parts of the report's page."""

from __future__ import annotations

import pytest

from segunlearn.audit.policy import Finding
from segunlearn.audit.report_sections import done, measures


@pytest.mark.parametrize(
    ("name", "detectable", "shown"),
    [
        ("gap_excess", 0.12, "Dice 0.12."),
        ("gap_excess", 4.95, "none, there are too few people."),
        ("worst_person", 1.0, "none, there are too few people."),
        ("membership", 0.93, "AUC 0.93."),
        ("membership", 1.0, "none, there are too few people."),
    ],
)
def test_no_leak_is_named_that_cannot_be(name: str, detectable: float, shown: str) -> None:
    """Neither Dice nor an AUC goes beyond 1."""
    found = Finding(name, "hidden", "unclear", 0.0, 0.1, 0.0, None, detectable, "Said.")
    page = measures({"findings": [found.to_json()], "verdict": {"reference": "short"}})
    assert f"Smallest leak this could have shown: {shown}" in page


def test_replayed_images_and_their_gap_are_said() -> None:
    found = done(
        {
            "provenance": {
                "method": "erode_and_repair",
                "parameters": {"retain": "replay", "replay_gap": 0.0312},
                "read": {"forget": 1, "replay": 7},
            },
            "notes": [],
        }
    )
    assert "replay gap 0.0312" in found
    assert "1 forgotten, 7 of the generator that replayed" in found
