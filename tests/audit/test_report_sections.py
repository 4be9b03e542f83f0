"""Parts of the report's page."""

from __future__ import annotations

from segunlearn.audit.report_sections import done


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
