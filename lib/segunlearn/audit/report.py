"""The audit report: one HTML page for a data-protection officer, complete in itself.

It is made from the audit's JSON alone, asks the network for nothing, and holds no name, no UID and
no pixel unless pictures are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from segunlearn.audit import report_sections as sections
from segunlearn.audit.report_texts import STYLE
from segunlearn.audit.sets import AuditSets
from segunlearn.errors import InvalidInputError
from segunlearn.records.durable import write_durably
from segunlearn.unlearning.loop import log_probabilities
from segunlearn.unlearning.sets import cut_to_patch


def html_report(
    result: Mapping[str, Any],
    *,
    asked: Mapping[str, str] | None = None,
    pictures: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render an audit's JSON as one page.

    Parameters
    ----------
    result
        ``AuditResult.to_json()`` or ``run.read_result``.
    asked
        What the request said: heading to text, e.g. ``{"Reason": "consent withdrawn"}``.
        Identifiers must be pseudonyms already.
    pictures
        Of ``middle_slices``; only where an administrator asked for images of patients.

    Raises
    ------
    InvalidInputError
        The JSON lacks a part of an audit.
    """
    try:
        parts = (
            sections.verdict(result),
            sections.asked(result, asked or {}),
            sections.done(result),
            sections.places(result),
            sections.measures(result),
            sections.structure(result),
            sections.restored(result),
            sections.cost(result),
            sections.figures(result, pictures),
            sections.not_proved(result),
            sections.glossary(),
            sections.record(result),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise InvalidInputError(
            f"the audit's JSON cannot be shown: {error!r} is missing or wrong."
        ) from error
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        f"<title>Audit report: {sections.text(result['verdict']['outcome'])}</title>"
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def write_report(path: Path, result: Mapping[str, Any], **options: Any) -> None:
    """Write ``html_report`` beside and rename."""
    write_durably(path, html_report(result, **options).encode("utf-8"))


def middle_slices(
    candidate: nn.Module,
    original: nn.Module,
    reference: nn.Module,
    sets: AuditSets,
    count: int = 4,
) -> list[dict[str, Any]]:
    """Pictures of the first forgotten studies: pixels of patients, for administrators only.

    Parameters
    ----------
    sets
        With pseudonyms (``AuditSets.pseudonymised``): their series names are printed.
    """
    studies = [cut_to_patch(s, sets.config) for s in sets.forget[:count]]
    names = {"candidate": candidate, "original": original, "reference": reference}
    masks = {
        name: [p.argmax(dim=0).numpy() for p in log_probabilities(network, studies, sets.config)]
        for name, network in names.items()
    }
    pictures = []
    for i, study in enumerate(studies):
        label = study.label.numpy()
        axis = sets.config.slice_axis
        if axis is None:
            axis = 2
        areas = (label > 0).sum(axis=tuple(a for a in range(3) if a != axis))
        at = int(np.argmax(areas))
        picture: dict[str, Any] = {
            "name": study.series,
            "image": np.take(study.image[0].numpy(), at, axis),
            "label": np.take(label, at, axis),
        }
        picture |= {name: np.take(m[i], at, axis) for name, m in masks.items()}
        pictures.append(picture)
    return pictures
