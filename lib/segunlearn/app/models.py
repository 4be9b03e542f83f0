"""The active version of a model, loaded once per digest, and one inference at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segunlearn.app.adapter_store import AdapterInfo, SiteAdapters
from segunlearn.errors import ConflictError, IntegrityError, NoMemoryError
from segunlearn.records.version_files import check_weights
from segunlearn.records.versions import VersionInfo, VersionRegistry

if TYPE_CHECKING:
    from segunlearn.inference import Prediction, Segmenter
    from segunlearn.volumes import Volume

logger = logging.getLogger(__name__)

#: Networks of sites that are kept loaded, beside the base.
KEPT_SITES = 4


class ActiveModel:
    """What is served under one name.

    Parameters
    ----------
    registry
        Its versions.
    sites
        Folder of its site adapters; without it there are none.
    device
        ``auto``, ``cpu`` or ``cuda:0``.

    Notes
    -----
    Networks are kept by the SHA-256 of their weights, never by a file's name or time: another
    version, or the same version changed on the disk, is another network or an error. Networks of
    sites are kept by the digests of base and adapter, so another pointer is another network.
    """

    def __init__(
        self, registry: VersionRegistry, *, sites: Path | None = None, device: str = "auto"
    ) -> None:
        self.registry = registry
        self.adapters = SiteAdapters(sites or registry.root / "sites")
        self._device = device
        self._loaded: tuple[str, Segmenter] | None = None
        self._adapted: dict[tuple[str, str], Segmenter] = {}
        self._checked: tuple[str, int, int, int] | None = None
        self._loading = threading.Lock()
        self._turn = threading.Lock()

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.registry.root.name

    def version(self) -> VersionInfo:
        """Return the active version.

        Raises
        ------
        ConflictError
            Nothing was trained yet.
        IntegrityError
            The pointer or the manifest was changed.
        """
        info = self.registry.active()
        if info is None:
            raise ConflictError(
                f"model {self.name!r} has no trained version yet. Annotate some studies and start "
                f"a training (POST /train/{self.name}), or run 'segunlearn train'."
            )
        return info

    def check(self) -> None:
        """See that the active version is whole; its weights are read again once their file changed.

        Raises
        ------
        IntegrityError
            They, its records or the pointer were changed or are gone.
        """
        info = self.registry.active()
        if info is None:
            return
        found = info.weights.stat() if info.weights.is_file() else None
        seen = found and (info.sha256, found.st_ino, found.st_size, found.st_mtime_ns)
        if seen is None or seen != self._checked:
            check_weights(info)
            self._checked = seen

    def segmenter(self) -> tuple[VersionInfo, Segmenter]:
        """Return the active version and its network, loaded when it is another one than before."""
        info = self.version()
        loaded = self._loaded
        if loaded is None or loaded[0] != info.sha256:
            from segunlearn.inference import Segmenter

            with self._loading:
                loaded = self._loaded
                if loaded is None or loaded[0] != info.sha256:
                    started = time.perf_counter()
                    loaded = (info.sha256, Segmenter.from_version(info, self._device))
                    self._loaded = loaded
                    logger.info(
                        "model %s: %s (%s…) loaded in %.2f s",
                        self.name, info.version, info.sha256[:12], time.perf_counter() - started,
                    )  # fmt: skip
        return info, loaded[1]

    def adapted(self, info: VersionInfo, base: Segmenter, adapter: AdapterInfo) -> Segmenter:
        """Return the network of a site, made when it is not one of the last few.

        Raises
        ------
        IntegrityError
            The adapter's file was changed, or it was made for other weights.
        """
        key = (info.sha256, adapter.sha256)
        with self._loading:
            found = self._adapted.pop(key, None)
            if found is None:
                started = time.perf_counter()
                found = adapter.segmenter(base, info)
                logger.info(
                    "site adapter %s on %s made ready in %.3f s",
                    adapter.name, info.version, time.perf_counter() - started,
                )  # fmt: skip
            self._adapted[key] = found  # the one used last comes last
            for old in [k for k in self._adapted if k[0] != info.sha256]:
                del self._adapted[old]
            while len(self._adapted) > KEPT_SITES:
                del self._adapted[next(iter(self._adapted))]
        return found

    def predict(
        self,
        volume: Volume,
        cancel: Callable[[], bool] | None = None,
        choose: Callable[[VersionInfo], AdapterInfo | None] | None = None,
        using: tuple[VersionInfo, Segmenter] | None = None,
    ) -> tuple[VersionInfo, Prediction, float]:
        """Segment a volume with the active version, or another one.

        Parameters
        ----------
        volume
            Any orientation and spacing.
        cancel
            Asked before each batch of windows.
        choose
            Gives the site adapter to a version; without it the base segments.
        using
            Another version and its network; it segments alone, and is not kept.

        Returns
        -------
        VersionInfo, Prediction, float
            The version used, the mask on the volume's grid, and the seconds spent waiting.

        Raises
        ------
        ConflictError, IntegrityError
            As ``version``.
        NoMemoryError
            The device has not enough memory.
        """
        with self.turn(volume) as waited:  # what was marked while it waited is not asked any more
            if using is not None:
                info, segmenter = using
            else:
                info, segmenter = self.segmenter()
                if choose is not None:
                    segmenter = self._chosen(info, segmenter, choose)
            return info, segmenter.predict(volume, cancel=cancel), waited

    def _chosen(
        self,
        info: VersionInfo,
        base: Segmenter,
        choose: Callable[[VersionInfo], AdapterInfo | None],
    ) -> Segmenter:
        """Return the network of the chosen site; chosen again if a mark takes it in this moment."""
        adapter = choose(info)
        while adapter is not None:
            try:
                return self.adapted(info, base, adapter)
            except IntegrityError:
                before, adapter = adapter, choose(info)
                if adapter == before:
                    raise
        return base

    @contextmanager
    def turn(self, volume: Volume) -> Iterator[float]:
        """Have the device alone for an image; yields the seconds waited for it.

        Raises
        ------
        NoMemoryError
            The device has not enough memory.
        """
        started = time.perf_counter()
        with self._turn:
            try:
                yield time.perf_counter() - started
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise NoMemoryError(
                    f"the device has not enough memory for an image of {volume.shape} voxels. Try "
                    "again when nothing else runs on it, or serve with --conf device cpu."
                ) from error

    def label_values(self) -> dict[str, int]:
        """Value of each structure in the active version's label maps, empty before the first."""
        info = self.registry.active()
        return {n: i + 1 for i, n in enumerate(info.config["labels"])} if info else {}

    def summary(self) -> dict[str, Any]:
        """Return what ``/info`` says of the active version, empty before the first."""
        info = self.registry.active()
        if info is None:
            return {}
        return {"version": info.version, "sha256": info.sha256, "created": info.created}


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory; torch has no class of its own for the CPU's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )
