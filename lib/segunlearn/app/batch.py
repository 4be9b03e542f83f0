"""Segment many images, one after another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from segunlearn.app.datastores import StudiesDatastore
from segunlearn.errors import SegUnlearnError, UnavailableError

logger = logging.getLogger(__name__)

#: Images without a mask that are told of at the end.
_TOLD: Final = 15


class BatchInfer:
    """Keeps the mask of each image as a label; an image that fails does not stop the others."""

    def __call__(
        self,
        request: Mapping[str, Any],
        datastore: StudiesDatastore,
        infer: Callable[..., dict[str, Any]],
    ) -> dict[str, dict[str, Any]]:
        """Segment ``request["images"]``: ``all``, ``labeled``, ``unlabeled``, or a list of ids.

        Returns
        -------
        dict
            By image id: ``label``, ``tag`` and ``params``, or ``error`` with a sentence.

        Raises
        ------
        UnavailableError
            The archive or the store went away.
        """
        image_ids = self._images(request, datastore)
        started, result = time.monotonic(), {}
        for number, image_id in enumerate(image_ids, start=1):
            asked = {**request, "image": image_id, "save_label": True}
            try:
                done = infer(asked, datastore)
                Path(done.pop("file")).unlink(missing_ok=True)
                result[image_id] = done
            except UnavailableError:
                raise
            except SegUnlearnError as error:
                logger.warning("image %d of %d failed: %s", number, len(image_ids), error)
                result[image_id] = {"error": str(error)}
            logger.info(
                "batch inference: %d of %d images, %.1f s",
                number, len(image_ids), time.monotonic() - started,
            )  # fmt: skip
        failed = [(n, r["error"]) for n, r in enumerate(result.values(), start=1) if "error" in r]
        if failed:  # said once more at the end: of a task's words only the last lines are kept
            logger.warning("%d of %d images have no mask:", len(failed), len(result))
            for number, why in failed[:_TOLD]:
                logger.warning("image %d: %s", number, why)
        return result

    @staticmethod
    def _images(request: Mapping[str, Any], datastore: StudiesDatastore) -> list[str]:
        chosen, tag = request.get("images", "all"), None
        if isinstance(chosen, list | tuple):
            found = [datastore.record(str(i)).id for i in chosen]
        elif chosen == "labeled":
            found = datastore.get_labeled_images(tag)
        elif chosen == "unlabeled":
            found = datastore.get_unlabeled_images(tag)
        else:
            found = datastore.list_images()
        largest = int(request.get("max_batch_size") or 0)
        return sorted(found)[: largest or None]
