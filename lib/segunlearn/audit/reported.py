"""What is measured and judges nothing: each beside the same figure of the never-seen references.

Either the reference itself does not pass (conformal ranks: 67 to 75 % of its studies in the pilot),
or nothing can (two versions), or the figure blames what is no fault (retained people).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from segunlearn.audit.collateral import collateral
from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.gap import Gap
from segunlearn.audit.membership import conformal_share, same_distribution
from segunlearn.audit.policy import Finding
from segunlearn.audit.scores import Measure, StudyScore, people_in, person_means, set_mean
from segunlearn.audit.versions_compared import two_versions


def reported(
    model: ModelFigures,
    original: ModelFigures,
    references: Sequence[ModelFigures],
    against: Gap,
    distances: Mapping[str, float] | None = None,
) -> list[Finding]:
    """List what judges nothing by itself and belongs into the report.

    Parameters
    ----------
    model, original, references
        As for ``judge.judge``.
    against
        The gap of the model to the references.
    distances
        Of each person of R and T to S, or None.
    """
    return [
        *_surfaces(model, references),
        *_ranks(model, references),
        _tug_of_war(references, against),
        *_collateral(model, original, references, distances),
        *_recovery(model, references),
        *_two_versions(model, original, references),
    ]


def _finding(name: str, value: float, words: str) -> Finding:
    return Finding(name, "none", "reported", value, None, 0.0, None, None, words)


def _surfaces(model: ModelFigures, references: Sequence[ModelFigures]) -> list[Finding]:
    found = []
    for name, measure, unit in (("surface_dice", "surface_dice", ""), ("hd95", "hd95_mm", " mm")):
        s = _difference(model.forget, [r.forget for r in references], measure)  # type: ignore[arg-type]  # literal names
        t = _difference(model.test, [r.test for r in references], measure)  # type: ignore[arg-type]
        if s is None or t is None:
            continue
        what = (
            "Surface Dice (1 mm)" if name == "surface_dice" else "The distance of surfaces (HD95)"
        )
        found.append(
            _finding(
                name, s[0] - t[0],
                f"{what} differs from the reference's by {s[0]:+.3f}{unit} on the forgotten and "
                f"{t[0]:+.3f}{unit} on unseen people, so by {s[0] - t[0]:+.3f}{unit} between them."
                + _left_out(s[1] + t[1]),
            )
        )  # fmt: skip
    return found


def _left_out(studies: int) -> str:
    if not studies:
        return ""
    return f" Left out, because a model found nothing in them: {studies} studies."


def _difference(
    scores: Sequence[StudyScore], references: Sequence[Sequence[StudyScore]], measure: Measure
) -> tuple[float, int] | None:
    """Mean over persons minus the references', and studies without a figure in any model."""
    tables = [scores, *references]
    missing = {s.series for table in tables for s in table if getattr(s, measure) is None}
    kept = [[s for s in table if s.series not in missing] for table in tables]
    if not kept[0]:
        return None
    ours, *theirs = (set_mean(table, measure) for table in kept)
    return ours - float(np.mean(theirs)), len(missing)


def _ranks(model: ModelFigures, references: Sequence[ModelFigures]) -> list[Finding]:
    found = []
    if model.calibration and all(r.calibration for r in references):

        def share(figures: ModelFigures) -> float:
            known = [s.loss for s in figures.calibration]
            return conformal_share([s.loss for s in figures.forget], known)

        ours, theirs = share(model), float(np.mean([share(r) for r in references]))
        few = len(model.calibration)
        words = (
            f"{ours:.0%} of the forgotten studies rank between 5 % and 95 % of {few} studies that "
            f"were never trained on; {theirs:.0%} under the reference."
        )
        if few < 19:
            words += " Fewer than 19 such studies cannot show one that is remembered less."
        found.append(_finding("conformal", ours, words))
    if min(people_in(model.forget), people_in(model.test)) >= 2:
        ours, *others = (
            same_distribution(
                list(person_means(f.forget, "loss").values()),
                list(person_means(f.test, "loss").values()),
            )
            for f in (model, *references)
        )
        found.append(
            _finding(
                "kolmogorov_smirnov", ours,
                "If forgotten and unseen people were alike, losses at least this different would "
                f"come up with probability {ours:.2f} (reference: {np.mean(others):.2f}). Small "
                "is suspicious; large proves little with few people.",
            )
        )  # fmt: skip
    return found


def _tug_of_war(references: Sequence[ModelFigures], against: Gap) -> Finding:
    words = (
        f"One figure for both sides, forgotten and unseen people as by the reference: "
        f"{against.tug_of_war:.3f} of 1"
    )
    if len(references) > 1:
        theirs = []
        for i, one in enumerate(references):
            rest = [*references[:i], *references[i + 1 :]]
            sides = [
                set_mean(getattr(one, name))
                - float(np.mean([set_mean(getattr(r, name)) for r in rest]))
                for name in ("forget", "test")
            ]
            theirs.append(math.prod(1 - abs(d) for d in sides))
        words += f" (one reference against the others: {np.mean(theirs):.3f})"
    return _finding("tug_of_war", against.tug_of_war, words + ".")


def _collateral(
    model: ModelFigures,
    original: ModelFigures,
    references: Sequence[ModelFigures],
    distances: Mapping[str, float] | None,
) -> list[Finding]:
    ours = collateral(original.test, model.test, distances)
    theirs = [collateral(original.test, r.test, distances) for r in references]
    found = [
        _finding(
            "collateral", ours.worst_decile,
            f"Unseen people: mean change of Dice {ours.mean:+.3f} since the original, worst tenth "
            f"{ours.worst_decile:+.3f} (reference: {np.mean([c.mean for c in theirs]):+.3f} and "
            f"{np.mean([c.worst_decile for c in theirs]):+.3f}).",
        )
    ]  # fmt: skip
    near = [c.nearest for c in theirs if c.nearest is not None]
    if ours.nearest is not None and near:
        rest = "" if ours.others is None else f", everybody else by {ours.others:+.3f}"
        found.append(
            _finding(
                "nearest", ours.nearest,
                f"The tenth of the unseen people whose images are most like the forgotten ones' "
                f"changed by {ours.nearest:+.3f} Dice{rest} (reference: {np.mean(near):+.3f} "
                "for those most alike).",
            )
        )  # fmt: skip
    if original.retain and model.retain:
        kept = collateral(original.retain, model.retain, distances)
        alike = "" if kept.nearest is None else f", the tenth most like them {kept.nearest:+.3f}"
        found.append(
            _finding(
                "retained", kept.mean,
                f"Retained people: mean change {kept.mean:+.3f}, worst tenth "
                f"{kept.worst_decile:+.3f}{alike}. A high Dice here is memory itself, so a fall "
                "is no fault.",
            )
        )  # fmt: skip
    return found


def _recovery(model: ModelFigures, references: Sequence[ModelFigures]) -> list[Finding]:
    if model.recovery is None:
        return []
    theirs = [r.recovery.attacked for r in references if r.recovery is not None]
    beside = f", the reference to {np.mean(theirs):.3f}" if theirs else ""
    return [
        _finding(
            "recovery", model.recovery.attacked,
            f"A hardly visible change of the image drives the model to Dice "
            f"{model.recovery.attacked:.3f} with the old masks{beside}; success "
            f"{model.recovery.success_before:.2f} before and {model.recovery.success_after:.2f} "
            "after the attack.",
        )
    ]  # fmt: skip


def _two_versions(
    model: ModelFigures, original: ModelFigures, references: Sequence[ModelFigures]
) -> list[Finding]:
    if min(people_in(model.forget), people_in(model.test)) < 2:
        return []
    ours, *theirs = (
        two_versions(original.forget, f.forget, original.test, f.test).area.value
        for f in (model, *references)
    )
    return [
        _finding(
            "two_versions", ours,
            f"Who holds the model before and after tells the forgotten people by AUC "
            f"{ours:.2f} (retrained: {np.mean(theirs):.2f}). No method can pass this; keep "
            "old versions locked.",
        )
    ]  # fmt: skip
