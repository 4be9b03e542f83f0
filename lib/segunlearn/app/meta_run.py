"""A meta-training: a joint training, and then what makes its version adapt to a site."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, cast

from segunlearn.adaptation.episodes import EpisodeSettings, refuse_few_people
from segunlearn.adaptation.inner import InnerSet
from segunlearn.adaptation.maml import MamlSettings, Order
from segunlearn.adaptation.meta_training import (
    Learned,
    MetaSettings,
    meta_train,
    refuse_one_site,
)
from segunlearn.adaptation.virtual_sites import VirtualSettings
from segunlearn.app.adapter_support import HeaderOf
from segunlearn.app.audit_studies import read_sets
from segunlearn.app.site_choice import Aliases
from segunlearn.app.training_run import TrainingRun
from segunlearn.cases import Case, number_of
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import ConflictError, InvalidInputError
from segunlearn.networks import load_weights
from segunlearn.records.durable import write_durably
from segunlearn.records.ledger import LedgerEntry
from segunlearn.records.runs import Progress
from segunlearn.records.version_info import META_MODEL
from segunlearn.records.versions import VersionInfo
from segunlearn.training import TrainResult, TrainSettings, split
from segunlearn.training.data import PreparedCase
from segunlearn.training.parallel import devices_for
from segunlearn.volumes import read_volume

#: Kind of its runs, and name of the trainer.
META_TRAIN: Final = "meta_train"


def meta_settings(
    *,
    learn: str,
    iterations: int,
    order: str,
    inner_set: str,
    inner_steps: int,
    virtual_sites: bool,
    seed: int,
) -> MetaSettings:
    """Make the settings of what people choose; ``both`` is the generator and steps that follow it.

    Raises
    ------
    InvalidInputError
        A value is wrong.
    """
    return MetaSettings(
        learn=(cast(Learned, "generator+maml" if learn == "both" else learn),),
        iterations=iterations,
        maml=MamlSettings(cast(Order, order), cast(InnerSet, inner_set), inner_steps),
        episodes=EpisodeSettings(virtual=VirtualSettings() if virtual_sites else None, seed=seed),
    )


def with_sites(cases: Sequence[Case], header_of: HeaderOf, aliases: Aliases) -> list[Case]:
    """Name the site of each case as its adapters would: spellings of one site are one site.

    A header that tells neither institution nor station gives no site.
    """
    keys = [aliases.of(header_of(case) or SiteKey()) for case in cases]
    return [replace(c, site=str(key) if key else "") for c, key in zip(cases, keys, strict=True)]


def people_by_site(cases: Sequence[Case]) -> dict[str, int]:
    """Count the people of each site; cases without a site only shape the joint weights."""
    sites = sorted({c.site for c in cases if c.site})
    return {site: len({number_of(c.person) for c in cases if c.site == site}) for site in sites}


def check_sites(
    cases: Sequence[Case], settings: TrainSettings, meta: MetaSettings
) -> dict[str, int]:
    """Refuse, before the joint training, cases from which nothing could be meta-learned.

    Parameters
    ----------
    cases
        With their sites.
    settings
        Of the joint training: who validates it is not learned from.
    meta
        Of the meta-training.

    Returns
    -------
    dict
        Number of people to learn from, by site.

    Raises
    ------
    InvalidInputError
        No site has people enough, or there is one site alone and no virtual ones.
    """
    train_cases, val_cases = split(cases, settings)
    people, need = people_by_site(train_cases), min(meta.episodes.support_people) + 1
    if not any(count >= need for count in people.values()):
        raise InvalidInputError(
            f"none of {len(people_by_site(cases))} sites has {need} people to learn from: "
            f"{need - 1} to adapt to and one to be judged on. "
            f"{len({number_of(c.person) for c in val_cases})} people, who validate the joint "
            "training, do not count. Annotate more people of a site. Images without a DICOM header "
            "belong to none: 'segunlearn meta-train --data' takes a folder for each site."
        )
    refuse_one_site(len(people), meta)
    return people


@dataclass
class MetaTrainingRun(TrainingRun):
    """A training whose version also gets a meta model; see ``TrainingRun``.

    It is one run, one row of the ledger and one version: whoever shaped the joint weights is named
    for the meta model too, and a forget request reaches both together.

    Parameters
    ----------
    meta
        How the meta-training goes on from the joint weights.
    """

    kind: ClassVar[str] = META_TRAIN

    meta: MetaSettings = field(default_factory=MetaSettings)

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), "meta": self.meta.to_json()}

    def _check_read(self, trained: Sequence[PreparedCase]) -> None:
        """Refuse sites whose people show no structure; ``check_sites`` read no label."""
        shown = people_by_site([r.case for r in trained if r.foreground])
        refuse_few_people(
            [shown.get(site, 0) for site in people_by_site([r.case for r in trained])],
            min(self.meta.episodes.support_people) + 1,
        )

    def _publish(self, result: TrainResult) -> VersionInfo:
        cases = [c for c in result.train_cases if c.site]
        by_site = read_sets(
            {
                site: [c for c in cases if c.site == site]
                for site in dict.fromkeys(c.site for c in cases)
            },
            result.config,
            lambda done, total: self.report(Progress("read", done, total, {})),
            self.should_stop,
            without=self.settings.without,
            cut=lambda s: replace(s, person=number_of(s.person)),  # in support or query, not both
            stopped="the meta-training was stopped while it read images; start it again to go on.",
        )
        _refuse_replaced(result, cases)
        network = load_weights(result.weights, result.config, result.sha256)
        made = meta_train(
            network.to(devices_for(result.settings)[0]),
            by_site,
            result.config,
            self.meta,
            base_sha256=result.sha256,
            run_dir=self.folder,
            report=self.report,
            cancel=self.should_stop,
        )
        data = made.to_bytes()
        write_durably(result.weights.parent / META_MODEL, data)
        self.details = {
            **self.details,
            "meta_model": {
                "sha256": hashlib.sha256(data).hexdigest(),
                "methods": list(made.methods),
                "sites": len(by_site),
            },
        }
        return super()._publish(result)

    def _entry(self, outcome: str, result: TrainResult | None = None) -> LedgerEntry:
        entry = super()._entry(outcome, result)
        parameters: dict[str, Any] = {
            **entry.parameters,
            "meta": self.meta.to_json(),
            "meta_model": self.details.get("meta_model"),
        }
        return replace(entry, parameters=parameters)


def _refuse_replaced(result: TrainResult, cases: Sequence[Case]) -> None:
    """Refuse files that are not those of the joint training: the ledger names them by digest."""
    replaced = 0
    for case in cases:
        before = result.digests[case.series]
        replaced += read_volume(case.image, modality=case.modality).digest() != before.image
        if case.label is not None:
            replaced += read_volume(case.label, label=True).digest() != before.label
    if replaced:
        raise ConflictError(
            f"{replaced} of the images or labels of the joint training were replaced while it ran, "
            "so nothing is published. Start it again, it learns from the new ones alone."
        )
