"""How hard an audit attacks, from what was ordered and what is there."""

from __future__ import annotations

import pytest

from segunlearn.app.audit_choice import views_of
from segunlearn.app.audit_order import Order


@pytest.mark.parametrize(
    ("retained", "views", "steps"),
    [
        (6, 0, 400),  # nothing known of the original: enough steps to learn anything
        (6, 120, 120),  # half of what the original saw
        (6, 20, 32),  # never below the least number of epochs
        (6, 2000, 400),
        (300, 120, 1600),  # many studies: by epochs
    ],
)
def test_short_reference_is_shorter_than_the_original(
    retained: int, views: int, steps: int
) -> None:
    short = Order("segmentation").settings("unlearned", retained, views).short_reference
    assert short.epochs * retained / short.batch_size == pytest.approx(steps, abs=retained)


def test_views_of_recorded_settings() -> None:
    assert views_of({"epochs": 10, "samples_per_case": 12}) == 120
    assert views_of({}) == 0


@pytest.mark.parametrize(
    ("quick", "images", "steps"),
    [
        (False, None, 300),
        (False, 15, 300),
        (False, 4, 100),
        (False, 1, 60),  # never fewer than a quick audit
        (True, 15, 60),
    ],
)
def test_a_student_of_few_images_learns_briefly(
    quick: bool, images: int | None, steps: int
) -> None:
    order = Order("segmentation", quick=quick)
    assert order.settings("unlearned", 24, 0, images).distillation.steps == steps
