"""Every measure of every model, each kept in a file so that a stopped audit goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from segunlearn.audit.artefact_attacks import (
    adapter_keys,
    half_precision,
    quantised,
    without_adapter,
)
from segunlearn.audit.class_mode import class_figures, without
from segunlearn.audit.collateral import distances_to
from segunlearn.audit.distillation import distil
from segunlearn.audit.figures import ModelFigures, Variant
from segunlearn.audit.recovery import recover
from segunlearn.audit.relearning import relearn
from segunlearn.audit.reversibility import reversibility
from segunlearn.audit.scores import person_means, score, scores_from_json
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.settings import AuditSettings
from segunlearn.errors import UnsupportedNetworkError
from segunlearn.networks import build_network, load_weights, save_weights
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.records.runs import Progress
from segunlearn.unlearning import Study, UnlearningSets, unlearn
from segunlearn.unlearning.loop import Cancel, Report, mean_dice


class Measurements:
    """Measures of all models, each kept in a file under the digest of what went into it."""

    def __init__(
        self,
        run_dir: Path,
        sets: AuditSets,
        settings: AuditSettings,
        report: Report,
        cancel: Cancel,
        *,
        withdrawn: str | None = None,
    ) -> None:
        self._withdrawn = withdrawn
        self._dir, self._sets, self._settings = run_dir, sets, settings
        self._report, self._cancel = report, cancel
        self._data = sets.digest()
        self._done = self._total = 0
        self._level: dict[str, float] = {}
        self.digests: dict[str, str] = {}
        #: CPU seconds of the short reference, where one was trained here.
        self.reference_seconds: float | None = None

    def short_reference(self) -> nn.Module:
        """Train a short never-seen reference on R, or load the one of an earlier start.

        In class mode on labels without the structure.
        """
        sets, chosen = self._sets, self._settings.short_reference
        path, mark = self._dir / "reference.safetensors", self._dir / "reference.json"
        wanted: dict[str, Any] = {"data": self._data, "settings": asdict(chosen)}
        if self._withdrawn is not None:
            wanted["withdrawn"] = self._withdrawn
        if path.exists() and mark.exists():
            kept = read_json(mark)
            if {k: kept.get(k) for k in ("withdrawn", *wanted)} == {"withdrawn": None} | wanted:
                self.reference_seconds = kept.get("cpu_seconds")
                return load_weights(path, sets.config, kept.get("sha256"))
        started, retain = time.process_time(), sets.retain
        if self._withdrawn is not None:
            retain = without(retain, sets.config, self._withdrawn)
        task = UnlearningSets(sets.config, retain=retain)
        start = build_network(sets.config, chosen.seed)
        network = unlearn("retrain", start, task, chosen, self._report, self._cancel).network
        self.reference_seconds = time.process_time() - started
        facts = {"sha256": save_weights(network, path), "cpu_seconds": self.reference_seconds}
        write_json_durably(mark, wanted | facts)
        return network

    def all(self, models: Mapping[str, nn.Module], then: int = 0) -> dict[str, ModelFigures]:
        """Measure every model.

        Parameters
        ----------
        then
            Measures that follow, for the progress.
        """
        attacks = self._settings.attacks
        others: dict[str, Callable[[nn.Module], dict[str, Any]]] = {}
        if self._sets.calibration:
            others["calibration"] = self._calibration
        if self._withdrawn is not None:
            others["class"] = self._class
        self._total = len(models) * (1 + len(others) + len(attacks)) + then
        for name, network in models.items():
            self.digests[name] = _digest(network)
        self._original = models["original"]
        makers: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
            "relearning": self._relearning,
            "distillation": self._distillation,
            "recovery": self._recovery,
            "artefacts": self._artefacts,
        }
        raw: dict[str, dict[str, Any]] = {}
        # the original's level on S, for the attacks, comes first
        for name in sorted(models, key=lambda n: n != "original"):
            network = models[name]
            raw[name] = self._kept(name, "scores", {}, partial(self._scores, network))
            if name == "original":
                scores = scores_from_json(raw[name]["forget"])
                self._level = {s.series: s.dice for s in scores} | person_means(scores)
            for other, make in others.items():
                parameters = {"structure": self._withdrawn} if other == "class" else {}
                raw[name] |= self._kept(name, other, parameters, partial(make, network))
            for attack in attacks:
                own = getattr(self._settings, attack, None)
                parameters = {} if own is None else asdict(own)
                if attack == "relearning" and len({s.person for s in self._sets.forget}) == 1:
                    parameters["unit"] = "studies"
                raw[name] |= self._kept(name, attack, parameters, partial(makers[attack], network))
        blank: dict[str, Any] = {
            "relearning": None,
            "distilled": None,
            "recovery": None,
            "variants": {},
            "adapter_keys": 0,
        }
        return {name: ModelFigures.from_json({**blank, **raw[name]}) for name in models}

    def distances(self, reference: str, network: nn.Module) -> dict[str, float] | None:
        """Distance of each person of R and T to S in a reference's features; None without them."""
        found: dict[str, float] | None = self._kept(
            reference, "distances", {}, partial(self._distances, network)
        )["to_s"]
        return found

    def restored(self, network: nn.Module) -> dict[str, Any]:
        """Hold a restored model against the original, on S and T."""
        self.digests["restored"] = _digest(network)
        return self._kept("restored", "reversibility", {}, partial(self._reversibility, network))

    def _kept(
        self,
        model: str,
        measure: str,
        parameters: dict[str, Any],
        make: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """Take the figures of a measure from its file if it was made from the same things."""
        mark = {
            "model": self.digests[model],
            "original": self.digests["original"],
            "data": self._data,
            "measure": measure,
            "parameters": {**parameters, "unseen": self._attacked()},
            "surfaces": self._settings.surfaces and self._spacings,
        }
        digest = hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()
        path = self._dir / f"{model}-{measure}.json"
        figures = None
        if path.exists():
            kept = read_json(path)
            figures = kept["figures"] if kept.get("made_from") == digest else None
        if figures is None:
            figures = make()
            write_json_durably(path, {"made_from": digest, "figures": figures})
        self._done += 1
        self._report(Progress(f"{model}: {measure}", self._done, self._total))
        return dict(figures)

    @property
    def _spacings(self) -> list[Any]:
        return [s.spacing for studies in self._sets.by_name().values() for s in studies]

    @cached_property
    def _unseen(self) -> tuple[Study, ...]:
        """Studies of T for the attacks: a first one of every person before anybody's second."""
        test, turn, seen = self._sets.test, [], Counter[str]()
        for study in test:
            turn.append(seen[study.person])
            seen[study.person] += 1
        chosen = sorted(range(len(test)), key=turn.__getitem__)[: self._settings.attacked_unseen]
        return tuple(test[i] for i in sorted(chosen))

    def _attacked(self) -> int | list[str]:
        """Tell which studies of T the attacks score: at most so many, or these."""
        most = self._settings.attacked_unseen
        return most if len(self._sets.test) <= most else [s.series for s in self._unseen]

    def _scores(self, network: nn.Module) -> dict[str, Any]:
        config, surfaces = self._sets.config, self._settings.surfaces
        return {
            name: [
                s.to_json()
                for s in score(
                    network,
                    getattr(self._sets, name),
                    config,
                    surfaces=surfaces,
                    cancel=self._cancel,
                )
            ]
            for name in ("forget", "retain", "test")
        }

    def _calibration(self, network: nn.Module) -> dict[str, Any]:
        scores = score(network, self._sets.calibration, self._sets.config, cancel=self._cancel)
        return {"calibration": [s.to_json() for s in scores]}

    def _class(self, network: nn.Module) -> dict[str, Any]:
        label = self._withdrawn or ""
        figures = class_figures(network, self._sets.test, self._sets.config, label)
        return {"withdrawn": figures.to_json()}

    def _distances(self, network: nn.Module) -> dict[str, Any]:
        sets = self._sets
        try:
            others = (*sets.retain, *sets.test)
            return {"to_s": distances_to(network, sets.forget, others, sets.config)}
        except UnsupportedNetworkError:  # only BasicUNet has the layer; the rest is measured
            return {"to_s": None}

    def _reversibility(self, network: nn.Module) -> dict[str, Any]:
        studies = (*self._sets.forget, *self._sets.test)
        return reversibility(network, self._original, studies, self._sets.config).to_json()

    def _relearning(self, network: nn.Module) -> dict[str, Any]:
        attacks = relearn(
            network,
            self._sets.forget,
            self._unseen,
            self._level,
            self._sets.config,
            self._settings.relearning,
            cancel=self._cancel,
        )
        return {"relearning": [a.to_json() for a in attacks]}

    def _distillation(self, network: nn.Module) -> dict[str, Any]:
        distilled = distil(
            network,
            self._sets.forget,
            self._sets.calibration,
            self._unseen,
            self._sets.config,
            self._settings.distillation,
            cancel=self._cancel,
        )
        return {"distilled": distilled.to_json()}

    def _recovery(self, network: nn.Module) -> dict[str, Any]:
        found = recover(
            network,
            self._original,
            self._sets.forget,
            self._sets.config,
            self._settings.recovery,
            cancel=self._cancel,
        )
        return {"recovery": found.to_json()}

    def _artefacts(self, network: nn.Module) -> dict[str, Any]:
        config, state = self._sets.config, network.state_dict()
        keys = adapter_keys(state)
        variants = {"float16": half_precision(network), "int8": quantised(network)}
        if keys:
            base = build_network(config, 0)
            kept = without_adapter(state)
            if set(kept) == set(base.state_dict()):
                base.load_state_dict(kept)
                variants["adapter dropped"] = base.eval()
        figures = {
            name: Variant(
                mean_dice(other, self._sets.forget, config),
                mean_dice(other, self._sets.test, config),
            )
            for name, other in variants.items()
        }
        return {"variants": {k: vars(v) for k, v in figures.items()}, "adapter_keys": len(keys)}


def _digest(network: nn.Module) -> str:
    """SHA-256 of the weights as ``save_weights`` writes them."""
    with torch.no_grad():
        state = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()
