"""Marking with stock clients: a model that marks the loaded image, and a segment named FORGET.

Slicer's and OHIF's MONAI Label panels can send the identifier of the loaded image in one way only:
by running a model. ``forget_study`` is such a model. It has no labels, and answers with an empty
mask of the image's size, so that what was drawn before stays as it is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.config import settings
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from segunlearn.app.forgetting import Mark, MarkStudy
from segunlearn.app.infer import read_image, voxel_type, write_mask
from segunlearn.errors import ForbiddenError, InvalidInputError
from segunlearn.volumes import Volume

#: Name of the model; listed last, so that it is no client's default.
MARKER = "forget_study"
#: Name of the segment that marks the study of a submitted label.
FORGET_SEGMENT = "FORGET"
#: What clients may send beside ``result_*``; everything else of a request is set by our side.
PARAMS = frozenset({"mark", "reason"})

#: Who may mark.
MARKING_ROLES = frozenset(
    {
        settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
        settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
    }
)
_MARKS: Mapping[str, Mark] = {"forget": "forget", "keep": "keep"}


class ForgetMarkerTask(InferTask):
    """The model ``forget_study``.

    Parameters
    ----------
    mark
        Does the marking.
    reasons
        Coded reasons to choose from; the first is what clients preselect.
    scratch
        Gives the folder of result files; the caller of the task deletes the file.
    saved_label
        File of the image's finished label, None when there is none. OHIF replaces its whole
        labelmap with the answer, so it gets this instead of an empty mask.
    """

    def __init__(
        self,
        mark: MarkStudy,
        reasons: Sequence[str],
        scratch: Callable[[], Path],
        saved_label: Callable[[str], Path | None] | None = None,
    ) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=[],  # a label named here would be emptied in Slicer
            dimension=3,
            description=(
                "Marks the study of the loaded image for forgetting (or takes the mark back). "
                "It segments nothing. Submit unsaved labels first: OHIF replaces them."
            ),
            config={"mark": ["forget", "keep"], "reason": list(reasons)},
        )
        self._mark, self._reasons, self._scratch = mark, tuple(reasons), scratch
        self._saved_label = saved_label

    def is_valid(self) -> bool:
        """Be listed always."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Mark the study of ``request["image_id"]``.

        Parameters
        ----------
        request
            ``image_id``: the id as the client sent it, taken before the app replaces it by a
            file; ``image``: that file or a ``Volume``; ``mark``: ``forget`` (default) or ``keep``;
            ``reason``; ``actor`` and ``roles``: who asks, set by our side.

        Returns
        -------
        str, dict
            File of an empty mask of the image's size, and ``request_id``, ``state``, ``message``.

        Raises
        ------
        InvalidInputError
            The image is no image of the studies (a session or an upload), or an option is wrong.
        ForbiddenError
            The role does not allow it.
        NotFoundError
            There is no such image.
        """
        image_id = request.get("image_id")
        if not isinstance(image_id, str) or not image_id or request.get("session"):
            raise InvalidInputError(
                "an uploaded image cannot be marked: only its name is known, not its study. Load "
                "it by Next Sample, or mark the study by its UID."
            )
        asked, reason = request.get("mark") or "forget", request.get("reason") or self._reasons[0]
        mark = _MARKS.get(str(asked))
        if mark is None:
            raise InvalidInputError(f"mark {str(asked)!r:.40}: use forget or keep.")
        if reason not in self._reasons:
            raise InvalidInputError(
                f"reason {str(reason)!r:.40}: use one of {', '.join(self._reasons)}."
            )
        roles = request.get("roles") or frozenset()
        if not MARKING_ROLES & roles:
            raise ForbiddenError(
                "marking a study needs the role of an annotator; ask for it, or let an annotator "
                "mark the study."
            )
        image = request["image"]
        volume = image if isinstance(image, Volume) else read_image(Path(image))
        viewer = str(request.get("result_compress", True)).lower() == "false"
        mask = self._answer(volume, image_id if viewer else None)
        marked = self._mark(
            image_id,
            mark,
            str(reason),
            str(request.get("actor") or ""),
            settings.MONAI_LABEL_AUTH_ROLE_ADMIN in roles,
        )
        descriptor, name = tempfile.mkstemp(suffix=".nrrd", prefix="mark-", dir=self._scratch())
        os.close(descriptor)
        write_mask(mask, Path(name), compress=not viewer)
        return name, {
            "request_id": marked.request_id,
            "state": marked.state,
            "created": marked.created,
            "message": marked.message,
        }

    def _answer(self, volume: Volume, saved_of: str | None) -> Volume:
        if saved_of is not None and self._saved_label is not None:
            path = self._saved_label(saved_of)
            if path is not None:
                saved = read_image(path)
                dtype = voxel_type(None, int(saved.array.max(initial=0)))
                return Volume(saved.array.astype(dtype), saved.affine)
        return Volume(np.zeros(volume.shape, np.uint8), volume.affine)


def has_forget_segment(label_info: Any) -> bool:
    """Whether a client's list of segments names FORGET: the study of the label is to be marked.

    The list is not changed: positions in it may stand for values, and a FORGET segment that holds
    voxels is refused by the datastore as an unknown structure. Mark after the label was saved.

    Parameters
    ----------
    label_info
        ``[{"name": "liver", "idx": 1}, {"name": "FORGET", "idx": 2}]`` as stock clients send it.

    Examples
    --------
    >>> has_forget_segment([{"name": "liver", "idx": 1}, {"name": " FORGET", "idx": 2}])
    True
    >>> has_forget_segment([{"name": "forget-me-not"}]), has_forget_segment(None)
    (False, False)
    """
    if not isinstance(label_info, list):
        return False
    names = [item.get("name") for item in label_info if isinstance(item, dict)]
    return any(isinstance(name, str) and name.strip() == FORGET_SEGMENT for name in names)
