"""Taking studies out of a network: exact retraining and the baselines of the literature.

Every method is one file with the same interface. It gets the network and the sets, says which
sets it reads, and returns a new network; the given one is left untouched. None of the approximate
ones is believed without an audit (``segunlearn.audit``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from segunlearn.errors import InvalidInputError, NotFoundError
from segunlearn.unlearning import (
    adversarial,
    bad_teacher,
    calibrated,
    calibration,
    checks,
    erase_to_retain,
    erase_to_retain_released,
    erode_and_repair,
    erode_and_repair_lora,
    fine_tune,
    gradient_ascent,
    gradient_difference,
    random_label,
    recoverable,
    retrain,
    salun,
    scrub,
)
from segunlearn.unlearning.loop import Cancel, Report, never, no_report
from segunlearn.unlearning.sets import (
    SetName,
    Study,
    T,
    UnlearningSets,
    cut_to_patch,
    few,
    studies_of,
)

__all__ = [
    "METHODS",
    "Method",
    "Study",
    "Unlearned",
    "UnlearningSets",
    "checked",
    "cut_to_patch",
    "method_named",
    "studies_of",
    "unlearn",
]


@dataclass(frozen=True)
class Method:
    """An unlearning method.

    Parameters
    ----------
    run
        ``(network, sets, settings, report, cancel) -> network``.
    settings
        Its frozen dataclass of settings; the defaults are usable.
    reads
        The sets it reads with its default settings.
    exact
        Whether the result cannot depend on the forget set.
    summary
        One line for people.
    reads_for
        The sets it reads with given settings, where these decide it; None: always ``reads``.
    check
        ``(network, sets, settings)``: raises InvalidInputError for what it cannot treat.
    most
        Studies of a set that it reads at most with given settings; None: all of each.
    """

    run: Callable[..., nn.Module]
    settings: type[Any]
    reads: tuple[SetName, ...]
    exact: bool
    summary: str
    reads_for: Callable[[Any], tuple[SetName, ...]] | None = None
    check: Callable[[nn.Module, UnlearningSets, Any], None] | None = None
    most: Callable[[Any], Mapping[SetName, int]] | None = None

    def reads_with(self, settings: Any) -> tuple[SetName, ...]:
        """Name the sets it reads with these settings; :func:`unlearn` gives it no others."""
        return self.reads if self.reads_for is None else self.reads_for(settings)

    def read_of(self, name: SetName, studies: Sequence[T], settings: Any) -> tuple[T, ...]:
        """Choose what it reads of a set with these settings; :func:`unlearn` gives it no more.

        Parameters
        ----------
        studies
            Of the set, read or not yet.
        """
        most = None if self.most is None else self.most(settings).get(name)
        return tuple(studies) if most is None else few(studies, most, settings.seed)


#: Every method by name.
METHODS: dict[str, Method] = {
    "retrain": Method(
        retrain.retrain,
        retrain.RetrainSettings,
        retrain.READS,
        True,
        "train again from random weights, without the forget set",
    ),
    "fine_tune": Method(
        fine_tune.fine_tune,
        fine_tune.FineTuneSettings,
        fine_tune.READS,
        False,
        "train on with the retain set",
    ),
    "gradient_ascent": Method(
        gradient_ascent.gradient_ascent,
        gradient_ascent.GradientAscentSettings,
        gradient_ascent.READS,
        False,
        "climb the loss of the forget set",
    ),
    "gradient_difference": Method(
        gradient_difference.gradient_difference,
        gradient_difference.GradientDifferenceSettings,
        gradient_difference.READS,
        False,
        "climb the loss of the forget set, descend on the retain set",
    ),
    "random_label": Method(
        random_label.random_label,
        random_label.RandomLabelSettings,
        random_label.READS,
        False,
        "teach wrong labels on the forget set",
    ),
    "bad_teacher": Method(
        bad_teacher.bad_teacher,
        bad_teacher.BadTeacherSettings,
        bad_teacher.READS,
        False,
        "imitate a random network on the forget set",
    ),
    "scrub": Method(
        scrub.scrub,
        scrub.ScrubSettings,
        scrub.READS,
        False,
        "leave the original on the forget set, follow it on the retain set, rewind",
    ),
    "salun": Method(
        salun.salun,
        salun.SalunSettings,
        salun.READS,
        False,
        "teach wrong labels to the weights that matter for the forget set",
    ),
    "erode_and_repair": Method(
        erode_and_repair.erode_and_repair,
        erode_and_repair.ErodeAndRepairSettings,
        erode_and_repair.READS,
        False,
        "throw most of every weight away, repair the rest on the retain set",
        check=checks.structure_in_retain,
    ),
    "erode_and_repair_lora": Method(
        erode_and_repair_lora.erode_and_repair_lora,
        erode_and_repair_lora.ErodeAndRepairLoraSettings,
        erode_and_repair_lora.READS,
        False,
        "throw most of every weight away, repair by a low-rank adapter: can be undone by its key",
        erode_and_repair_lora.reads,
        checks.adapters_and_structure_in_retain,
    ),
    "calibrated": Method(
        calibrated.calibrated,
        calibrated.CalibratedSettings,
        calibrated.READS,
        False,
        "bring the forget set to the loss of unseen people and no further: hides",
        calibrated.reads,
        checks.adapters_and_calibration,
        calibrated.most,
    ),
    "adversarial": Method(
        adversarial.adversarial,
        adversarial.AdversarialSettings,
        adversarial.READS,
        False,
        "the same under attack on the input or on the weights",
        calibration.reads,
        checks.adapters_and_calibration,
    ),
    "recoverable": Method(
        recoverable.recoverable,
        recoverable.RecoverableSettings,
        recoverable.READS,
        False,
        "random labels and other attention in the encoder, from the forget set alone; undone at "
        "once by its deposit",
        check=checks.adapters_and_structure,
    ),
    "erase_to_retain": Method(
        erase_to_retain.erase_to_retain,
        erase_to_retain.EraseToRetainSettings,
        erase_to_retain.READS,
        False,
        "contradict the original on the forget set by a decoder adapter, then refit the head",
        check=checks.adapters_fit,
    ),
    "erase_to_retain_released": Method(
        erase_to_retain_released.erase_to_retain_released,
        erase_to_retain_released.EraseToRetainReleasedSettings,
        erase_to_retain_released.READS,
        False,
        "the same as its authors' code does it: background on the forget set",
        erase_to_retain_released.reads,
        checks.adapters_fit,
    ),
}


@dataclass(frozen=True)
class Unlearned:
    """What a method made, and what it cost.

    Parameters
    ----------
    network
        A new network in evaluation mode.
    method
        Its name in ``METHODS``.
    settings
        As used.
    read
        Number of studies it was given, by set.
    cpu_seconds
        Process time over all threads.
    """

    network: nn.Module
    method: str
    settings: Any
    read: dict[str, int]
    cpu_seconds: float


def method_named(name: str) -> Method:
    """Find a method by its name.

    Raises
    ------
    NotFoundError
        There is none.
    """
    if name not in METHODS:
        raise NotFoundError(
            f"there is no unlearning method {name!r:.60}; there are {', '.join(METHODS)}."
        )
    return METHODS[name]


def checked(
    name: str, network: nn.Module, sets: UnlearningSets, settings: Any = None
) -> tuple[Method, Any, UnlearningSets]:
    """Find out whether a method can run, without running it.

    Parameters
    ----------
    name, network, sets, settings
        As for :func:`unlearn`.

    Returns
    -------
    tuple
        The method, its settings, and the sets it would be given.

    Raises
    ------
    NotFoundError
        There is no such method.
    InvalidInputError
        Settings of another method, a set that it reads is empty, a network or sets that it
        cannot treat.
    """
    method = method_named(name)
    settings = method.settings() if settings is None else settings
    if type(settings) is not method.settings:
        raise InvalidInputError(
            f"{name} takes {method.settings.__name__}, not {type(settings).__name__}."
        )
    reads = method.reads_with(settings)
    given = sets.only(reads)
    if method.most is not None:
        given = UnlearningSets(
            sets.config, **{n: method.read_of(n, getattr(given, n), settings) for n in reads}
        )
    if method.check is not None:
        method.check(network, given, settings)
    return method, settings, given


def unlearn(
    name: str,
    network: nn.Module,
    sets: UnlearningSets,
    settings: Any = None,
    report: Report = no_report,
    cancel: Cancel = never,
) -> Unlearned:
    """Run a method by name, giving it only the sets it says it reads.

    Parameters
    ----------
    name
        Key of ``METHODS``.
    network
        The original; left untouched.
    sets
        S, R and C.
    settings
        Of the method's own class; None takes its defaults.
    report, cancel
        Progress, and whether to stop.

    Raises
    ------
    NotFoundError, InvalidInputError
        See :func:`checked`; before any work.
    CancelledError
        ``cancel`` said so.
    """
    method, settings, given = checked(name, network, sets, settings)
    started = time.process_time()
    result = method.run(network, given, settings, report, cancel)
    read: dict[str, int] = {n: len(getattr(given, n)) for n in method.reads_with(settings)}
    return Unlearned(result, name, settings, read, time.process_time() - started)
