"""Replayed images in the place of the retain set, and what that costs: the replay gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from segunlearn.app.audit_choice import Choice
from segunlearn.app.audit_studies import read_sets, window
from segunlearn.app.generator_store import Generators
from segunlearn.app.records import Records
from segunlearn.app.replay_run import config_of, lineage_of, load
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.cases import Case
from segunlearn.networks import ModelConfig
from segunlearn.records.ledger import LedgerCase
from segunlearn.records.versions import VersionInfo
from segunlearn.replay.generator import Generator
from segunlearn.replay.sampling import replayed_studies
from segunlearn.unlearning import Study
from segunlearn.unlearning.loop import log_probabilities, mean_dice

#: Role of whoever shaped the generator, in the row of what replayed it.
ROLE: Final = "replay"
#: Images on which the gap is measured, replayed and stored.
_MEASURED: Final = 24


@dataclass(frozen=True)
class Replay:
    """A generator that replays for an order.

    Parameters
    ----------
    generator, info
        It, and what it is recorded as.
    cases
        Whose images shaped it.
    """

    generator: Generator
    info: VersionInfo
    cases: tuple[Case, ...]

    @classmethod
    def of(cls, order: UnlearnOrder, records: Records) -> Replay | None:
        """Open the generator that an order replays; None where it reads stored studies or none.

        Raises
        ------
        NotFoundError
            There is none.
        ConflictError
            It saw what is to be forgotten.
        """
        info = _generator(order, records)
        return cls(load(info), info, tuple(lineage_of(records, info))) if info else None

    def studies(
        self, original: nn.Module, config: ModelConfig, order: UnlearnOrder
    ) -> tuple[Study, ...]:
        """Replay as many images as the order says, labelled by the original."""
        return replayed_studies(self.generator, original, config, order.replayed, order.seed)

    def measured(
        self,
        original: nn.Module,
        candidate: nn.Module,
        sets: Choice,
        order: UnlearnOrder,
        cancel: Callable[[], bool],
    ) -> dict[str, Any]:
        """Say what was replayed, and the gap to stored data.

        The gap is the Dice with which the candidate agrees with the original on replayed images
        that it did not learn from, minus the same on stored images of retained people, where there
        are any: what is kept on the replay and lost on people.
        """
        fresh = replayed_studies(
            self.generator, original, sets.config, _MEASURED, order.seed + 2**30
        )
        on_replay = mean_dice(candidate, fresh, sets.config)
        found: dict[str, Any] = {
            "retain": "replay", "replayed_images": order.replayed,
            "generator": self.info.sha256, "agreement_on_replay": round(on_replay, 4),
        }  # fmt: skip
        stored = sets.retain[:_MEASURED]
        if stored:
            read = read_sets(
                {"retain": stored}, sets.config, lambda *_: None, cancel,
                cut=lambda study: window(study, sets.config),
            )["retain"]  # fmt: skip
            on_stored = mean_dice(candidate, _answered(original, read, sets.config), sets.config)
            found["agreement_on_stored"] = round(on_stored, 4)
            found["replay_gap"] = round(on_replay - on_stored, 4)
        return found


def replayed_cases(
    order: UnlearnOrder, records: Records, original: VersionInfo
) -> Sequence[LedgerCase]:
    """Whose images shaped the generator that an order replays; nobody's where it replays none.

    Raises
    ------
    NotFoundError, ConflictError
        See :meth:`Replay.of`.
    InvalidInputError
        It makes other patches than the original takes.
    """
    info = _generator(order, records)
    if info is None:
        return ()
    config_of(info).check_fits(ModelConfig.from_json(original.config))
    return records.ledger.lineage_cases(info.sha256)


def _generator(order: UnlearnOrder, records: Records) -> VersionInfo | None:
    if order.retain != "replay":
        return None
    targets = records.forget_set.live_targets()
    return Generators(records.home, order.model).usable(targets, records.pseudonyms)


def _answered(
    original: nn.Module, studies: Sequence[Study], config: ModelConfig
) -> tuple[Study, ...]:
    answers = log_probabilities(original, studies, config)
    return tuple(
        dataclasses.replace(s, label=a.argmax(0).to(s.label.dtype))
        for s, a in zip(studies, answers, strict=True)
    )
