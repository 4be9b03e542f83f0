"""What a fold has made so far, in a folder: a fold that was stopped goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import commit
from torch import nn

from segunlearn.adaptation import MetaModel
from segunlearn.networks import ModelConfig, load_weights, save_weights
from segunlearn.records.durable import read_json, write_durably, write_json_durably

BASE = "0" * 64


@dataclass(frozen=True)
class Kept:
    """Networks, meta models and figures by name, each with the commit that made it.

    Parameters
    ----------
    folder
        Where they are; None: nothing is kept.
    """

    folder: Path | None

    def network(self, name: str, config: ModelConfig, make: Callable[[], nn.Module]) -> Any:
        """Give a network and the CPU seconds that it took."""
        return self._made(
            name, make, lambda path, n: save_weights(n, path), lambda p: load_weights(p, config)
        )

    def meta(self, name: str, make: Callable[[], MetaModel]) -> Any:
        """Give a meta model and the CPU seconds that it took."""
        return self._made(
            name,
            make,
            lambda path, m: write_durably(path, m.to_bytes()),
            lambda p: MetaModel.from_bytes(p.read_bytes(), BASE),
        )

    def figures(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Give figures."""
        path = self._path(f"{name}.json")
        if path is not None and path.is_file():
            return dict(read_json(path))
        found = make() | {"commit": commit()}
        if path is not None:
            write_json_durably(path, found)
        return found

    def _made(
        self,
        name: str,
        make: Callable[[], Any],
        write: Callable[[Path, Any], object],
        read: Callable[[Path], Any],
    ) -> tuple[Any, float]:
        path, facts = self._path(f"{name}.safetensors"), self._path(f"{name}-seconds.json")
        if path is not None and facts is not None and facts.is_file():
            return read(path), float(read_json(facts)["cpu"])
        started = time.process_time()
        made = make()
        seconds = time.process_time() - started
        if path is not None and facts is not None:
            write(path, made)
            write_json_durably(facts, {"cpu": seconds, "commit": commit()})
        return made, seconds

    def _path(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name
