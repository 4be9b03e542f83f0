"""Which image to annotate next; never one of a study with a live forget request."""

from __future__ import annotations

import hashlib
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monailabel.interfaces.tasks.strategy import Strategy

from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.datastores.infos import check_tag
from segunlearn.app.models import ActiveModel
from segunlearn.errors import (
    CancelledError,
    IntegrityError,
    InvalidInputError,
    NoMemoryError,
    SegUnlearnError,
    UnavailableError,
)
from segunlearn.inference import Segmenter
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.transforms import preprocess
from segunlearn.volumes import Volume, read_volume

logger = logging.getLogger(__name__)

#: Images that are tried before giving up, when series turn out not to be readable as volumes.
MAX_TRIES = 25
#: Images among which one is chosen, of an archive that holds more.
MAX_CANDIDATES = 2000
#: Probabilities whose entropy is taken together.
_SLAB_VALUES = 2**24
#: Longest time for which one request scores images, in seconds: others wait for the model, too.
MAX_SECONDS = 30.0


class OurStrategy(Strategy):
    """Base: candidates without a label and without a forget request, readable as volumes."""

    #: Whether it waits with the inferences.
    uses_model = False

    def __call__(
        self, request: Mapping[str, Any], datastore: StudiesDatastore
    ) -> dict[str, Any] | None:
        """Return ``{"id": …}``, or None when nothing is left to annotate."""
        tag = request.get("label_tag")
        unlabelled = self.shortlist(datastore.candidates(check_tag(tag) if tag else None))
        candidates: list[str] = []
        while unlabelled and not candidates:
            candidates = datastore.without_forgotten(unlabelled[:MAX_CANDIDATES])
            unlabelled = unlabelled[MAX_CANDIDATES:]
        for image_id in self.order(request, datastore, candidates)[:MAX_TRIES]:
            try:
                datastore.get_image_uri(image_id)
            except UnavailableError:
                raise
            except SegUnlearnError as error:
                logger.info("an image is not proposed: %s", error)
                continue
            return {"id": image_id}
        return None

    def shortlist(self, image_ids: list[str]) -> list[str]:
        """Order in which images become candidates where there are more than a choice weighs.

        The same order each time, so that what was scored of an image is used again.
        """
        return sorted(image_ids, key=lambda i: hashlib.sha256(i.encode()).digest())

    @abstractmethod
    def order(
        self, request: Mapping[str, Any], datastore: StudiesDatastore, candidates: Sequence[str]
    ) -> list[str]:
        """Candidates, the best first."""


class First(OurStrategy):
    """The first image by name."""

    def __init__(self) -> None:
        super().__init__("First image without a finished label")

    def shortlist(self, image_ids: list[str]) -> list[str]:
        """By name."""
        return sorted(image_ids)

    def order(
        self, request: Mapping[str, Any], datastore: StudiesDatastore, candidates: Sequence[str]
    ) -> list[str]:
        """By name."""
        return sorted(candidates)


class RandomChoice(OurStrategy):
    """A random image; those proposed lately are less probable."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__("Random image without a finished label")
        self._random = np.random.default_rng(seed)

    def shortlist(self, image_ids: list[str]) -> list[str]:
        """By chance."""
        return [image_ids[i] for i in self._random.permutation(len(image_ids))]

    def order(
        self, request: Mapping[str, Any], datastore: StudiesDatastore, candidates: Sequence[str]
    ) -> list[str]:
        """Weighted by the seconds since each was proposed, one day at most."""
        if not candidates:
            return []
        now = time.time()
        ages = []
        for image_id in candidates:
            last = last_proposed(proposals(datastore.infos.image(image_id)), "random")
            ages.append(min(86_400.0, max(1.0, now - last)))
        weights = np.asarray(ages) / np.sum(ages)
        chosen = self._random.choice(len(candidates), len(candidates), replace=False, p=weights)
        return [candidates[i] for i in chosen]


def proposals(note: Mapping[str, Any]) -> dict[str, Any]:
    """When each strategy proposed an image, by the note on it, into which clients write, too."""
    noted = note.get("strategy")
    return noted if isinstance(noted, dict) else {}


def last_proposed(noted: Mapping[str, Any], strategy: str) -> float:
    """Time of the last proposal by a strategy, 0 where the note does not tell."""
    one = noted.get(strategy)
    try:
        return float(one["ts"]) if isinstance(one, dict) else 0.0
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0


class Uncertainty(OurStrategy):
    """The image on which the active version is least sure.

    Parameters
    ----------
    model
        Whose uncertainty.
    cache
        Folder of scores; one file a version and method, as a score never changes for a version.

    Notes
    -----
    Both are taken on the model's grid. ``entropy``: mean over the uncertain region of the entropy
    of the class probabilities, divided by log K. ``tta``: mutual information between prediction and
    mirroring (the entropy of the mean over test-time augmentations minus the mean of their
    entropies; Wang et al. 2019, doi:10.1016/j.neucom.2019.01.103), likewise divided. A request
    scores at most ``candidates`` new images and stops after ``seconds``, ``MAX_SECONDS`` at most,
    or when ``cancel`` says so; scores of earlier requests are kept.
    """

    uses_model = True

    def __init__(self, model: ActiveModel, cache: Path, seed: int = 0) -> None:
        super().__init__("Image without a finished label on which the model is least sure")
        self._model, self._cache = model, cache
        self._seed = seed
        self._too_large: set[str] = set()  # for the memory that there was; tried last from then on

    def info(self) -> dict[str, Any]:
        """Return the description and the options of a request."""
        return {"description": self.description, "config": self.config()}

    @staticmethod
    def config() -> dict[str, Any]:
        """Options with their defaults."""
        return {"method": ["entropy", "tta"], "candidates": 8, "seconds": 20}

    def order(
        self, request: Mapping[str, Any], datastore: StudiesDatastore, candidates: Sequence[str]
    ) -> list[str]:
        """By score, the least sure first; images without a score last.

        Where there is not enough memory for an image, others are scored.

        Raises
        ------
        ConflictError
            Nothing was trained yet.
        InvalidInputError
            An option is wrong.
        NoMemoryError
            There is not enough memory for any.
        CancelledError
            ``cancel`` said so.
        """
        method, limit, seconds = self._options(request)
        version = self._model.version()
        path = self._cache / f"{version.sha256}-{method}.json"
        scores = self._read(path)
        refused = [c for c in candidates if scores.get(c, 0.0) < 0.0]
        sizes = datastore.sizes(refused)
        for image_id in refused:
            if scores[image_id] != _refused(sizes.get(image_id, 0)):
                del scores[image_id]  # it has grown since
        missing = [c for c in sorted(candidates) if c not in scores]
        order = [missing[i] for i in np.random.default_rng(self._seed).permutation(len(missing))]
        order.sort(key=lambda image_id: image_id in self._too_large)
        try:
            lacking = self._score(order[:limit], scores, request, datastore, method, seconds)
        finally:
            if order:
                write_json_durably(path, scores)
        if lacking is not None and all(scores.get(c, -1.0) < 0.0 for c in candidates):
            raise lacking
        return sorted(
            (c for c in candidates if scores.get(c, 0.0) >= 0.0),
            key=lambda c: (-scores.get(c, -0.5), c),
        )

    def _score(
        self,
        image_ids: Sequence[str],
        scores: dict[str, float],
        request: Mapping[str, Any],
        datastore: StudiesDatastore,
        method: str,
        seconds: float,
    ) -> NoMemoryError | None:
        """Add the scores of some images; returns the last lack of memory."""
        lacking: NoMemoryError | None = None
        until, cancel = time.monotonic() + seconds, request.get("cancel")
        for position, image_id in enumerate(image_ids):
            if position and time.monotonic() > until:
                break
            _, segmenter = self._model.segmenter()
            try:
                volume = read_volume(
                    Path(datastore.get_image_uri(image_id)),
                    modality=datastore.record(image_id).modality,
                )
                with self._model.turn(volume):
                    scores[image_id] = uncertainty(segmenter, volume, method, cancel)
            except (NoMemoryError, MemoryError) as error:
                lacking = _lack_of_memory(error)
                logger.warning("an image is not scored: %s", lacking)
                self._too_large.add(image_id)
            except (UnavailableError, CancelledError):
                raise
            except SegUnlearnError as error:
                logger.info("an image is not scored: %s", error)
                size = datastore.sizes([image_id]).get(image_id, 0)
                scores[image_id] = _refused(size)
        return lacking

    def _options(self, request: Mapping[str, Any]) -> tuple[str, int, float]:
        default = self.config()
        method = request.get("method") or default["method"][0]
        if isinstance(method, list):
            method = method[0] if method else default["method"][0]
        if method not in default["method"]:
            raise InvalidInputError(
                f"method {method!r:.40}: use one of {', '.join(default['method'])}."
            )
        try:
            limit = int(request.get("candidates") or default["candidates"])
            seconds = float(request.get("seconds") or default["seconds"])
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError("candidates and seconds must be numbers.") from error
        return str(method), max(1, min(limit, 256)), max(0.0, min(seconds, MAX_SECONDS))

    @staticmethod
    def _read(path: Path) -> dict[str, float]:
        if not path.is_file():
            return {}
        try:
            return {str(k): float(v) for k, v in dict(read_json(path)).items()}
        except (IntegrityError, TypeError, ValueError):
            return {}


def _refused(size: int) -> float:
    """Stand for the score of an image that is no volume, while it has so many instances."""
    return -1.0 - size


def _lack_of_memory(error: NoMemoryError | MemoryError) -> NoMemoryError:
    if isinstance(error, NoMemoryError):
        return error
    return NoMemoryError(
        "there is not enough memory to read an image. Try again when less runs on the server."
    )


def uncertainty(
    segmenter: Segmenter,
    volume: Volume,
    method: str = "entropy",
    cancel: Callable[[], bool] | None = None,
) -> float:
    """Score in [0, 1]; higher is less sure.

    Parameters
    ----------
    segmenter
        The network.
    volume
        The image.
    method
        ``"entropy"`` or ``"tta"``, see ``Uncertainty``.
    cancel
        Asked before each batch of windows.

    Raises
    ------
    CancelledError
        ``cancel`` said so.
    """
    prepared = preprocess(volume, segmenter.config)
    mean = segmenter.probabilities_of(prepared, cancel=cancel)
    values = _entropy_of(mean)
    if method == "tta":
        axes = (0, 1, 2)
        for axis in axes:  # mirror the patient
            mirrored = replace(prepared, tensor=prepared.tensor.flip(axis + 1))
            back = segmenter.probabilities_of(mirrored, cancel=cancel)
            values += np.flip(_entropy_of(back), axis)
            for total, one in zip(mean, back, strict=True):
                total += one.to(total.device).flip(axis)
        mean /= len(axes) + 1
        values /= len(axes) + 1
        values = np.maximum(_entropy_of(mean) - values, 0.0)
    return uncertain_mean(values, mean[:1].cpu().numpy())


def _entropy_of(probabilities: torch.Tensor) -> npt.NDArray[np.float32]:
    """Entropy at each voxel of the model's grid, part by part: probabilities may lie in a file."""
    shape = probabilities.shape
    found = np.empty(shape[1:], np.float32)
    step = max(1, _SLAB_VALUES // (shape[0] * shape[1] * shape[2]))
    for start in range(0, shape[3], step):
        part = slice(start, start + step)
        found[..., part] = entropy(probabilities[..., part].cpu().numpy())
    return found


def entropy(probabilities: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Entropy of the classes at each voxel over log K, in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> entropy(np.array([[0.5, 1.0], [0.5, 0.0]])).round(3).tolist()
    [1.0, 0.0]
    """
    p = np.clip(probabilities, 1e-12, 1.0)
    return -(p * np.log(p)).sum(axis=0) / np.log(len(p))  # type: ignore[no-any-return]


def uncertain_mean(values: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> float:
    """Mean over the voxels where some structure has at least 5 %, 0 when there are none."""
    region = probabilities[0] < 0.95
    return float(values[region].mean()) if region.any() else 0.0
