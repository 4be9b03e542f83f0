"""An adaptation from the chosen support to the adapter in service, for server and command line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import nn

from segunlearn.adaptation import (
    Adapted,
    AdaptSettings,
    LeaveOneOut,
    MetaModel,
    adapt,
    choose,
    gate,
    leave_one_out,
    read_meta_model,
)
from segunlearn.adaptation.meta_model import need
from segunlearn.adapters.site import SiteAdapter, Start, differing
from segunlearn.app import checkpoints
from segunlearn.app.adapter_store import AdapterInfo, SiteAdapters, site_digest
from segunlearn.app.adapter_support import (
    AdaptOrder,
    HeaderOf,
    Support,
    choose_support,
    methods_of,
    named,
)
from segunlearn.app.audit_studies import read_sets
from segunlearn.app.locks import training_lock
from segunlearn.app.models import is_out_of_memory
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.site_choice import Aliases, kept_as
from segunlearn.app.structures import untaught, withdrawn
from segunlearn.app.train_ledger import library_versions, machine
from segunlearn.app.training_run import refuse_hidden
from segunlearn.app.watched_run import WatchedRun, why_unexpected
from segunlearn.cases import Case, number_of, unknown_people
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import CancelledError, ConflictError, NoMemoryError, SegUnlearnError
from segunlearn.inference import choose_device
from segunlearn.networks import ModelConfig, load_weights
from segunlearn.records.ledger import LedgerCase, LedgerEntry
from segunlearn.records.numbered import created_now
from segunlearn.records.runs import Progress
from segunlearn.records.store import utc_now
from segunlearn.records.trail import TrailEntry
from segunlearn.records.versions import VersionInfo, VersionRegistry

logger = logging.getLogger(__name__)

#: Kind of its runs and rows, and name of the trainer.
SITE_ADAPT: Final = "site_adapt"
#: Says that an adapter was adopted after a person was held out, or that none could be.
_UNCHECKED: Final = "one person only, adopted on confirmation: nobody could be held out"

_LACKING: Final = (
    "there is not enough memory to adapt with these images, so nothing is changed. Try again when "
    "nothing else runs on the device, with fewer studies, or on the CPU."
)


@dataclass
class AdaptRun(WatchedRun):
    """An adaptation under way: its record, and when to stop.

    Parameters
    ----------
    order
        What is asked for.
    home, records
        Of the installation.
    requested_by
        Who asked for it.
    on_progress
        Called with every progress record, after it was stored.
    stopped
        Tells that the person at the terminal wants it to stop.
    orphan
        Tells that whoever started the run is gone.
    lock_seconds
        To wait for a training of the model.
    """

    order: AdaptOrder
    home: Home
    records: Records
    requested_by: str = ""
    on_progress: Callable[[Progress], None] | None = None
    stopped: Callable[[], bool] | None = None
    orphan: Callable[[], bool] | None = None
    lock_seconds: float = 5.0
    run_id: str = ""
    _started: str = ""
    _looked: float = 0.0
    _stop: bool = False

    @property
    def store(self) -> SiteAdapters:
        """Adapters of the model."""
        return SiteAdapters(self.home.sites / self.order.model)

    def prepare(
        self, cases: Sequence[Case], header_of: HeaderOf
    ) -> tuple[VersionInfo, Support, tuple[AdaptSettings, ...]]:
        """Choose version, support and methods to try; nothing is read or changed.

        Parameters
        ----------
        cases
            Every labelled case at hand, also those marked for forgetting.
        header_of
            Tells the scanner of a case.

        Raises
        ------
        ConflictError
            Nothing was trained yet, what is served only hides what was forgotten, or a named study
            is marked.
        SegUnlearnError
            See ``choose_support``; the method needs a meta model that is not there.
        """
        registry = VersionRegistry(self.home.model(self.order.model))
        info = registry.active()
        if info is None:
            raise ConflictError(
                f"model {self.order.model!r} has no trained version to adapt. Train it first."
            )
        instead = "Train again from random weights, and adapt the version that comes out."
        refuse_hidden(self.records, registry, info, instead)
        aliases = Aliases.read(self.home.sites)
        support = choose_support(self.order, cases, header_of, self.records, info, aliases)
        kept = kept_as(self.store.sites(), aliases, SiteKey.parse(support.site))
        support = replace(support, site=kept)
        meta = read_meta_model(info)
        tried = self.order.settings_for(meta.methods if meta else ())
        for settings in tried:
            if settings.method != "fine_tune":
                need(meta, settings.method)
        self.order.refuse_unread(tried)
        return info, support, tried

    def execute(
        self,
        cases: Sequence[Case],
        header_of: HeaderOf,
        fetch: Callable[[Sequence[Case]], Sequence[Case]] = tuple,
    ) -> dict[str, Any]:
        """Adapt, hold each person out once, and serve the adapter if it does not harm.

        Parameters
        ----------
        cases, header_of
            As for :meth:`prepare`, which is done under the lock.
        fetch
            Gives cases their files.

        Returns
        -------
        dict
            ``outcome`` (``"adopted"`` or ``"base kept"``), ``run_id``, ``site``, ``width``,
            ``adapter``, ``method``, ``why``, ``studies``, ``people``, ``leave_one_out``, ``curve``.

        Raises
        ------
        ConflictError
            A training of this model runs, or a study or structure was marked meanwhile.
        CancelledError
            A person stopped it; nothing is changed.
        NoMemoryError
            The device has not enough memory; nothing is changed.
        InvalidInputError, LabelError, GeometryError, IntegrityError
            The support or the weights cannot be used; nothing is changed.
        """
        by = self.requested_by or SITE_ADAPT
        with training_lock(self.home, self.order.model, by, self.lock_seconds, self.orphan):
            self.records.drop_marked_checkpoints()
            info, support, tried = self.prepare(cases, header_of)
            self._started = utc_now()
            self.run_id = self.records.runs.start(
                SITE_ADAPT,
                self.order.model,
                {**self.order.to_json(), "method": methods_of(tried), "site": support.site,
                 "studies": len(support.cases), "base": info.version},
                requested_by=self.requested_by,
            )  # fmt: skip
            try:
                result = self._adapt(info, support, tried, fetch)
            except SegUnlearnError as error:
                stopped = isinstance(error, CancelledError)
                self._end(info, support, "cancelled" if stopped else "failed", str(error))
                raise
            except Exception as error:
                lacking = is_out_of_memory(error)
                why = _LACKING if lacking else why_unexpected(error)
                self._end(info, support, "failed", why)
                if lacking:
                    raise NoMemoryError(why) from error
                raise
            return {**result, "run_id": self.run_id, "site": support.site,
                    "width": support.width, "studies": len(support.cases),
                    "people": support.people}  # fmt: skip

    def _adapt(
        self,
        info: VersionInfo,
        support: Support,
        tried: Sequence[AdaptSettings],
        fetch: Callable[[Sequence[Case]], Sequence[Case]],
    ) -> dict[str, Any]:
        self.tell(Progress("read", 0, len(support.cases), {}))
        config = ModelConfig.from_json(info.config)
        marked = withdrawn(self.records, self.order.model, config.labels)
        left_out = untaught(self.records, info).union(marked)
        studies = read_sets(
            {"support": fetch(support.cases)},
            config,
            lambda done, total: self.tell(Progress("read", done, total, {})),
            self.should_stop,
            without=left_out,
            # as in training: who shares a number may be one person, and is held out as one
            cut=lambda study: replace(study, person=number_of(study.person)),
            stopped="the adapting was stopped while it read images.",
        )["support"]
        network = load_weights(info.weights, config, info.sha256)
        network = network.to(choose_device(self.order.device))
        meta = read_meta_model(info)
        settings, held_out, why = tried[0], None, _UNCHECKED
        if support.people > 1:
            found = [
                leave_one_out(network, meta, studies, config, s, self.tell, self.should_stop)
                for s in tried
            ]
            best = choose(found)
            settings, held_out = tried[best], found[best]
            adopted, why = gate(held_out)
            if len(tried) > 1:
                each = zip(tried, found, strict=True)
                told = ", ".join(f"{named(s)} {f.means['adapted']:.3f}" for s, f in each)
                why += f"; tried: {told}"
            if (unnamed := unknown_people(support.cases)) > 1:
                why += f"; {unnamed} studies have no PatientID, each counts as another person"
            if not adopted:
                self._append(info, support, "refused", None)
                self.records.runs.finish(self.run_id, "refused", f"the base stays: {why}"[:1900])
                return {"outcome": "base kept", "adapter": None, "method": settings.method,
                        "why": why, "leave_one_out": held_out.means, "curve": []}  # fmt: skip
        adapted = adapt(network, meta, studies, config, settings, self.tell, self.should_stop)
        about = self._about(support, settings, adapted, held_out)
        adapter = _adapter(info, meta, network, adapted, settings.method, about)
        published = self._publish(info, support, adapter, left_out)
        self.records.runs.finish(
            self.run_id, "done", f"adapter {published.name} is in service: {why}"[:1900]
        )
        logger.info("site adapter %s is in service", published.name)
        return {"outcome": "adopted", "adapter": published.name, "method": settings.method,
                "why": why, "leave_one_out": held_out.means if held_out else None,
                "curve": [list(point) for point in adapted.curve]}  # fmt: skip

    def _about(
        self,
        support: Support,
        settings: AdaptSettings,
        adapted: Adapted,
        held_out: LeaveOneOut | None,
    ) -> dict[str, Any]:
        pseudonyms = self.records.pseudonyms
        nothing: Mapping[str, float | None] = {"adapted": None, "base": None}
        return {
            "method": settings.method,
            "k": len(support.cases),
            "people": support.people,
            "steps": max(0, len(adapted.curve) - 1),
            **settings.used,
            "seed": settings.seed,
            "labels": list(adapted.structures),
            "width": support.width,
            "support": sorted(pseudonyms.of(c.study) for c in support.cases),
            "curve": [list(point) for point in adapted.curve],
            "leave_one_out": held_out.means if held_out else dict(nothing),
            "created": created_now(),
            "versions": dict(library_versions()),
        }

    def _publish(
        self, info: VersionInfo, support: Support, adapter: SiteAdapter, left_out: Collection[str]
    ) -> AdapterInfo:
        """Write ledger and trail, then the adapter: none is there that these do not know."""
        self.tell(Progress("publish", 0, 1, {}))
        self._refuse_marked(info, support, left_out)
        self._append(info, support, "done", adapter.sha256)
        self.records.trail.append(
            TrailEntry(
                "publish", self.requested_by, kind="adapter", what=site_digest(support.site),
                note=f"{SITE_ADAPT} of {self.order.model}, run {self.run_id}",
            )
        )  # fmt: skip
        pseudonyms = self.records.pseudonyms
        published = self.store.put(
            support.site,
            adapter,
            run_id=self.run_id,
            note=lambda folder: checkpoints.note(folder, support.cases, pseudonyms),
        )
        try:  # a mark between the question and the adapter found no adapter to retire
            self.records.forget_set.wait_for_marks()
            self._refuse_marked(info, support, left_out)
        except SegUnlearnError:  # one there was, or nobody can say
            self.store.destroy([published], checkpoints.MARKED)
            raise
        self.tell(Progress("publish", 1, 1, {}))
        return published

    def _refuse_marked(
        self, info: VersionInfo, support: Support, left_out: Collection[str]
    ) -> None:
        kept = self.records.without_forgotten(support.cases)
        if len(kept) < len(support.cases):
            raise ConflictError(
                f"{len(support.cases) - len(kept)} studies of the support were marked for "
                "forgetting while the site was adapted, so nothing is published. Start it again, "
                "it leaves them out."
            )
        now = withdrawn(self.records, self.order.model, info.config["labels"])
        if new := sorted(set(now).difference(left_out)):
            raise ConflictError(
                f"{', '.join(new)} was marked for forgetting while the site was adapted, so "
                "nothing is published. Start it again, it leaves the label out."
            )

    def _append(
        self, info: VersionInfo, support: Support, outcome: str, sha256: str | None
    ) -> None:
        self.records.ledger.append(
            LedgerEntry(
                run_id=self.run_id,
                kind=SITE_ADAPT,
                model=self.order.model,
                version_sha256=sha256,
                parent_sha256=info.sha256,
                cases=[LedgerCase(c.series, c.study, c.person, "support") for c in support.cases],
                parameters={**self.order.to_json(), "site": support.site, "width": support.width},
                seed=int(self.order.settings.get("seed", 0)),
                versions=library_versions(),
                machine=machine(),
                started=self._started,
                ended=utc_now(),
                outcome=outcome,
            )
        )

    def _end(self, info: VersionInfo, support: Support, outcome: Any, why: str) -> None:
        """Record an end without a result."""
        self.record(
            lambda: self._append(info, support, outcome, None),
            lambda: self.records.runs.finish(self.run_id, outcome, why[:1900]),
        )


def _adapter(
    info: VersionInfo,
    meta: MetaModel | None,
    network: nn.Module,
    adapted: Adapted,
    method: str,
    about: Mapping[str, Any],
) -> SiteAdapter:
    """Keep what the steps changed; the weights they began at lie beside the version."""
    part = meta.part_of(method) if meta is not None else ""
    start = Start(part, info.meta_sha256) if part else None
    given = getattr(meta, part) if part else {}
    return SiteAdapter(info.sha256, differing(adapted.tensors, network, given), about, start)
