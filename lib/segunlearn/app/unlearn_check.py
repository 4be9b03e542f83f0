"""What would stop an unlearning later, found before any work: settings, network, too few people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from segunlearn.app.unlearn_choice import UnlearnChoice
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.cases import Case
from segunlearn.errors import InvalidInputError
from segunlearn.inference import choose_device
from segunlearn.networks import build_network, load_weights
from segunlearn.unlearning import METHODS, Study, UnlearningSets, checked


def check(order: UnlearnOrder, choice: UnlearnChoice) -> None:
    """Refuse what the method of an order cannot treat; no image is read, nothing is changed.

    Parameters
    ----------
    order
        What is asked for.
    choice
        Of ``choose_unlearning``.

    Raises
    ------
    InvalidInputError
        A setting is unknown or wrong, a set that the method reads is empty, too few people are
        unseen, the device is none, or the method cannot do without the retain set.
    UnsupportedNetworkError
        The method cannot treat the network; the message names the layer.
    """
    choose_device(order.device)
    name = order.method_for(choice.level)
    settings = settings_of(name, order)
    if choice.original is None or choice.sets is None:
        return  # nothing is to be unlearned
    if name == "retrain":
        return  # it reads the retain set, which a choice always has
    sets = choice.sets
    original = choice.original
    if original.weights_state == "here":
        network = load_weights(original.weights, sets.config, original.sha256)
    else:  # sealed, until a restore opens it; what is looked at here are the layers
        network = build_network(sets.config, 0)
    given = UnlearningSets(
        sets.config,
        forget=_without_pixels(sets.forget),
        retain=_without_pixels(sets.retain),
        calibration=_without_pixels(sets.calibration),
    )
    checked(name, network, given, settings)


def settings_of(name: str, order: UnlearnOrder) -> Any:
    """Make the settings of a method as an order says; without the key, which is drawn later.

    Raises
    ------
    InvalidInputError
        See :func:`check`.
    """
    values = dict(order.settings)
    if name == "retrain":
        if values:
            raise InvalidInputError(
                f"retrain takes no settings ({', '.join(sorted(values))}): it repeats the training "
                "of the version that is to forget. Leave them out, or choose another method."
            )
        if order.retain != "stored":
            raise InvalidInputError(
                "retrain cannot do without the retain set; choose another method or retain=stored."
            )
        return METHODS[name].settings()
    known = METHODS[name].settings.__dataclass_fields__
    if unknown := sorted(set(values) - set(known)):
        raise InvalidInputError(
            f"{name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    if values.get("structure"):
        raise InvalidInputError(
            "structure: studies and people are taken out here. Train again without the label "
            "(segunlearn train --again)."
        )
    if order.retain == "none":
        if "retain" not in known:
            raise InvalidInputError(
                f"{name} cannot do without the retain set; choose another method or retain=stored."
            )
        values["retain"] = "none"
    if order.retain == "replay" and "retain" in known:
        values["retain"] = "stored"  # where the replayed images are put
    try:
        settings = METHODS[name].settings(**values)
    except TypeError as error:
        raise InvalidInputError(f"a setting of {name} has the wrong type ({error}).") from error
    if order.retain == "replay" and "retain" not in METHODS[name].reads_with(settings):
        raise InvalidInputError(
            f"{name} does not read the retain set, so there is nothing to replay for. Choose "
            "another method, or leave retain=replay out."
        )
    return settings


def _without_pixels(cases: Iterable[Case]) -> tuple[Study, ...]:
    """Who is in a set, as far as a check before the work looks at it."""
    image, label = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8)
    return tuple(Study(c.series, c.study, c.person, image, label) for c in cases)
