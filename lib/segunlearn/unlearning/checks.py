"""What a method needs of a network and of sets, looked at before any work."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from segunlearn.errors import InvalidInputError
from segunlearn.unlearning.lora import refuse_batch_normalisation
from segunlearn.unlearning.sets import SetName, UnlearningSets

#: Fewer unseen people say too little about how losses of unseen people are spread.
FEWEST_CALIBRATION_PEOPLE: Final = 5


def adapters_fit(network: nn.Module, _: UnlearningSets, __: Any) -> None:
    """Refuse networks that adapters cannot treat.

    Raises
    ------
    UnsupportedNetworkError
        Batch normalisation; the message names the layer.
    """
    refuse_batch_normalisation(network)


def structure_is_there(sets: UnlearningSets, structure: int, shown_by: SetName = "forget") -> None:
    """Refuse a structure that cannot be withdrawn; 0 (study mode) always can.

    Raises
    ------
    InvalidInputError
        The model has no such label value, or no study of the set shows it.
    """
    if structure == 0:
        return
    values = sets.config.label_values
    if structure not in values.values():
        known = ", ".join(f"{v} ({name})" for name, v in values.items())
        raise InvalidInputError(f"the model has no structure {structure}; it has {known}.")
    if not any(bool((s.label == structure).any()) for s in getattr(sets, shown_by)):
        raise InvalidInputError(
            f"no study of the {shown_by} set shows the structure {structure}; give some that do."
        )


def structure_in_retain(_: nn.Module, sets: UnlearningSets, settings: Any) -> None:
    """Check a method that takes a structure out of the labels of R.

    Raises
    ------
    InvalidInputError
        See :func:`structure_is_there`.
    """
    structure_is_there(sets, settings.structure, "retain")


def adapters_and_structure_in_retain(
    network: nn.Module, sets: UnlearningSets, settings: Any
) -> None:
    """Check the same with adapters.

    Raises
    ------
    InvalidInputError
        See the other checks.
    """
    refuse_batch_normalisation(network)
    structure_in_retain(network, sets, settings)


def adapters_and_calibration(network: nn.Module, sets: UnlearningSets, settings: Any) -> None:
    """Check a method that aims at the losses of unseen people, or withdraws a structure.

    Raises
    ------
    InvalidInputError
        Fewer than five people in C in study mode, or see the other checks.
    """
    refuse_batch_normalisation(network)
    structure_is_there(sets, settings.structure)
    people = len({s.person for s in sets.calibration})
    if settings.structure == 0 and people < FEWEST_CALIBRATION_PEOPLE:
        raise InvalidInputError(
            f"the calibration set holds {people} people; {FEWEST_CALIBRATION_PEOPLE} are needed "
            "to know how losses of unseen people are spread. Label more people who were never "
            "trained on, or choose a method that needs none."
        )


def adapters_and_structure(network: nn.Module, sets: UnlearningSets, settings: Any) -> None:
    """Check a method with adapters that may withdraw a structure.

    Raises
    ------
    InvalidInputError
        See the other checks.
    """
    refuse_batch_normalisation(network)
    structure_is_there(sets, settings.structure)
