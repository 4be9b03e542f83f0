"""Options of training and unlearning requests: a whitelist with types, bounds and defaults.

Stock clients send other trainers' options along and numbers as texts (see "Refresh leaks options"
in MONAI Label's Slicer module), so unknown keys are dropped, and known ones are read as what they
must be. What names files or cases is refused, for the ledger must know what was trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from segunlearn.errors import InvalidInputError
from segunlearn.training.planning import RECIPES, recipe
from segunlearn.training.settings import TrainSettings

logger = logging.getLogger(__name__)

#: Keys that would choose the cases or files of a training.
REFUSED = ("train_ds", "val_ds", "dataset", "parent_weights", "load_path")
#: What is no option of any trainer: who asks, which trainer, and what MONAI Label's child adds.
_BESIDE = frozenset({"client_id", "model", "local_rank"})

#: Characters of a free text; a list of some thousand identifiers has room.
LONGEST_TEXT = 100_000


@dataclass(frozen=True)
class Option:
    """One option.

    Parameters
    ----------
    setting
        Field of the task's settings, empty for options of the task itself.
    default
        Its type is the option's type. A text without ``choices`` is free, and a list of texts is
        read as one with commas.
    low, high
        Bounds of a number, inclusive.
    choices
        Texts that are allowed.
    """

    setting: str
    default: int | float | bool | str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()


_DEFAULTS = TrainSettings()

#: Options by the names that stock trainers use where they have one.
OPTIONS: dict[str, Option] = {
    "max_epochs": Option("epochs", _DEFAULTS.epochs, 1, 100_000),
    "train_batch_size": Option("batch_size", _DEFAULTS.batch_size, 1, 1024),
    "learning_rate": Option("learning_rate", _DEFAULTS.learning_rate, 1e-8, 10.0),
    "val_split": Option("val_fraction", 0.2, 0.0, 0.9),
    "val_interval": Option("val_interval", _DEFAULTS.val_interval, 1, 100_000),
    "early_stop_patience": Option("patience", _DEFAULTS.patience, 0, 100_000),
    "samples_per_case": Option("samples_per_case", _DEFAULTS.samples_per_case, 1, 1024),
    "seed": Option("seed", _DEFAULTS.seed, 0, 2**31 - 1),
    "amp": Option("amp", _DEFAULTS.amp, choices=("auto", "off")),
    "pretrained": Option("", True),
    # of the training, and of the network where no version is there to start from
    "recipe": Option("", "default", choices=tuple(RECIPES)),
}


def config(options: Mapping[str, Option] = OPTIONS) -> dict[str, Any]:
    """Return what ``/info`` shows; of a list, clients offer a choice and take the first."""
    return {k: list(o.choices) if o.choices else o.default for k, o in options.items()}


def check(request: Mapping[str, Any], options: Mapping[str, Option] = OPTIONS) -> dict[str, Any]:
    """Read the options of a request.

    Parameters
    ----------
    request
        As a client sent it.
    options
        Of the task.

    Returns
    -------
    dict
        Every option, of its type, fit for JSON.

    Raises
    ------
    InvalidInputError
        A value is wrong, or the request tries to choose cases or files.
    """
    refused = sorted(k for k in REFUSED if request.get(k) not in (None, "", [], {}))
    if refused:
        raise InvalidInputError(
            f"{', '.join(refused)}: a request cannot choose what is trained on. Trainings use the "
            "finished labels of the studies, without those marked for forgetting."
        )
    ignored = sorted(set(request) - set(options) - _BESIDE)
    if ignored:
        logger.info("options that this trainer does not have are ignored: %s", ", ".join(ignored))
    return {key: _read(key, option, request.get(key)) for key, option in options.items()}


def settings_of(options: Mapping[str, Any], device: str) -> TrainSettings:
    """Return the settings of a run from checked options.

    Stock clients send every default along, so it is no choice: there the recipe's value counts.
    """
    chosen, values = recipe(options["recipe"]).settings, {}
    for key, option in OPTIONS.items():
        name = option.setting
        of_recipe = name and getattr(chosen, name) != getattr(_DEFAULTS, name)
        if name and not (of_recipe and options[key] == option.default):
            values[name] = options[key]
    return replace(chosen, **values, device=device)


def _read(key: str, option: Option, value: Any) -> int | float | bool | str:
    if isinstance(value, list) and option.choices:
        value = value[0] if value else None
    if value is None or value == "":
        return option.default
    if option.choices:
        if value not in option.choices:
            raise InvalidInputError(f"{key} {value!r:.40}: use one of {', '.join(option.choices)}.")
        return str(value)
    if isinstance(option.default, str):
        return _free_text(key, value)
    if isinstance(option.default, bool):
        text = str(value).strip().lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise InvalidInputError(f"{key} {value!r:.40}: must be true or false.")
        return text in ("true", "1", "yes", "on")
    try:
        number = float(value)
        if isinstance(value, bool) or (isinstance(option.default, int) and number != int(number)):
            raise ValueError(value)
    except (TypeError, ValueError, OverflowError) as error:
        kind = "whole number" if isinstance(option.default, int) else "number"
        raise InvalidInputError(f"{key} {value!r:.40}: must be a {kind}.") from error
    if not option.low <= number <= option.high:
        raise InvalidInputError(
            f"{key} {value!r:.40}: must be from {option.low:g} to {option.high:g}."
        )
    return int(number) if isinstance(option.default, int) else number


def _free_text(key: str, value: Any) -> str:
    words = value if isinstance(value, list) else [value]
    text = ",".join(w for w in words if isinstance(w, str))
    if not all(isinstance(w, str) for w in words) or len(text) > LONGEST_TEXT:
        raise InvalidInputError(
            f"{key} {value!r:.40}: must be a text, or a list of texts, of at most "
            f"{LONGEST_TEXT} characters."
        )
    return text
