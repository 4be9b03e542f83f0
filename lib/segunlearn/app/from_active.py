"""What a training from a version takes over beside weights: whom it keeps out, whom it knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from segunlearn.app.options import Home
from segunlearn.cases import Case, number_of
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from segunlearn.records.ledger import Ledger
from segunlearn.records.versions import VersionInfo, VersionRegistry

#: No person: its pseudonym tells whether the site's key is still the same.
_KEY_PROBE: Final = "people kept out"
#: Roles of the ledger whose images chose weights or told where to stop, and no more.
_NOT_FITTED: Final = ("validation", "calibration")


def held_out_details(held_out: Collection[str], pseudonyms: Pseudonyms) -> dict[str, Any]:
    """Say in a version's manifest who was kept out, by pseudonym."""
    return {
        "held_out_pseudonyms": sorted(held_out),
        "held_out_key": pseudonyms.of(_KEY_PROBE) if held_out else None,
    }


def held_out_of(info: VersionInfo | None, pseudonyms: Pseudonyms) -> set[str]:
    """Pseudonyms of the people that ``train --holdout`` kept out of a version; of none, nobody.

    Raises
    ------
    IntegrityError
        They were made with another key, so that nobody could be recognised.
    """
    if info is None:
        return set()
    found = set(info.details.get("held_out_pseudonyms") or ())
    if found and info.details.get("held_out_key") != pseudonyms.of(_KEY_PROBE):
        raise IntegrityError(
            f"{info.version}: the people it kept out are named by another site's key, so they "
            "cannot be told from others. Put the file site.key of the home it was trained in back."
        )
    # older manifests name the people themselves
    return found | {pseudonyms.of(person) for person in info.details.get("held_out") or ()}


def held_out_numbers(
    cases: Sequence[Case], info: VersionInfo | None, pseudonyms: Pseudonyms
) -> set[str]:
    """Numbers (see ``number_of``) of the people of cases whom a version kept out.

    Who shares a number may be the same person, where its issuer is not known.

    Raises
    ------
    IntegrityError
        As ``held_out_of``.
    """
    held_out, of = held_out_of(info, pseudonyms), pseudonyms.of
    return {
        number_of(c.person)
        for c in cases
        if not held_out.isdisjoint((of(c.person), of(number_of(c.person))))
    }


def keep_out(
    cases: Sequence[Case],
    parent: VersionInfo | None,
    pseudonyms: Pseudonyms,
    say: Callable[[str], object],
) -> tuple[list[Case], int]:
    """Leave out of a training whom its parent kept out, and count them.

    Parameters
    ----------
    cases
        That were chosen.
    parent
        Version that the training starts from, or whose network it takes; None: nobody is left out.
    pseudonyms
        Of the site.
    say
        Is told how many of them are left out, where the parent kept anybody out.

    Raises
    ------
    InvalidInputError
        Nobody is left.
    IntegrityError
        As ``held_out_of``.
    """
    out = held_out_numbers(cases, parent, pseudonyms)
    kept = [c for c in cases if number_of(c.person) not in out]
    known = held_out_of(parent, pseudonyms)
    if parent is not None and known:
        if cases and not kept:
            raise InvalidInputError(
                f"{parent.version} kept out every one of these people, to be judged on them. Give "
                "images of others."
            )
        say(
            f"{len(out)} of the {len(known)} people whom {parent.version} kept out, to be judged "
            "on them, are in these images: left out"
        )
    return kept, len(out)


def with_fitted(
    cases: Sequence[Case],
    parent: VersionInfo | None,
    ledger: Ledger,
    say: Callable[[str], object],
) -> list[Case]:
    """Note whose images the weights were fitted to, so that others validate the training.

    Parameters
    ----------
    cases
        That were chosen.
    parent
        Version that the training starts from; None: random weights, fitted to nobody.
    ledger
        Tells who trained the parent and its ancestors; who only validated them was not learned.
    say
        Is told where nobody is left to validate, or the ledger does not know.

    Raises
    ------
    UnavailableError
        The store cannot be reached.
    """
    if parent is None:
        return list(cases)
    try:
        lineage = ledger.lineage_cases(parent.sha256)
    except NotFoundError:
        say(
            f"the ledger does not know whom {parent.version} was trained on, so the validation "
            "Dice may be of people it knows"
        )
        return list(cases)
    fitted = {number_of(c.person) for c in lineage if c.role not in _NOT_FITTED}
    noted = [replace(c, fitted=number_of(c.person) in fitted) for c in cases]
    if noted and all(c.fitted for c in noted):
        say(f"{parent.version} was trained on every one of these people: nobody validates")
    return noted


def check_still_active(home: Home, model: str, parent: VersionInfo | None) -> None:
    """Refuse to pass over a version that another run has published meanwhile.

    Raises
    ------
    ConflictError
        As said.
    """
    if parent is None:
        return
    now = VersionRegistry(home.model(model)).active()
    if now is None or now.sha256 != parent.sha256:
        raise ConflictError(
            f"the active version changed from {parent.version} to {now.version if now else 'none'} "
            "before this training began. Start it again, it takes what is active then."
        )
