"""What clients say about images and labels: one JSON file each, replaced whole under a lock.

MONAI Label keeps these notes in one ``datastore_v2.json`` that loses updates when the server and
a training write at once, and that is damaged by a crash; marks for forgetting never live here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segunlearn.app.locks import exclusive
from segunlearn.errors import IntegrityError, InvalidInputError
from segunlearn.records.durable import read_json, write_json_durably

logger = logging.getLogger(__name__)

#: Largest note about one image or label, in bytes of JSON.
MAX_INFO_BYTES = 256 * 1024
#: Deepest nesting of a note: beyond some 250 levels no list with it in it could be answered.
MAX_INFO_LEVELS = 32

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._ +@=-]{0,198}[A-Za-z0-9_+@=-])?")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_name(name: str, what: str = "image") -> str:
    """Return the name if it can be a file name of its own, whatever the client sent.

    Raises
    ------
    InvalidInputError
        It is empty, too long, or holds path separators or other signs.
    """
    if ".." in name or not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{what} {name!r:.80} is not a usable name: take letters, digits and . _ - only, at "
            "most 200, starting with a letter or digit."
        )
    return name


def check_tag(tag: str) -> str:
    """Return a label's tag if it can be a folder name of its own.

    Raises
    ------
    InvalidInputError
        It is empty, too long, or holds path separators or other signs.
    """
    tag = getattr(tag, "value", tag)
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise InvalidInputError(
            f"label tag {tag!r:.80} is not usable: take letters, digits, '_' and '-', at most 64, "
            "as in 'final' or 'original'."
        )
    return tag


def _file_name(image_id: str) -> str:
    """Return the id itself where it can be a file name, else its digest."""
    if ".." not in image_id and _NAME.fullmatch(image_id):
        return image_id
    return f"sha256-{hashlib.sha256(image_id.encode()).hexdigest()}"


class Infos:
    """Notes on images (``images/<id>.json``) and labels (``labels/<tag>/<id>.json``).

    Parameters
    ----------
    root
        Folder of the notes.
    locks
        Folder of lock files.
    """

    def __init__(self, root: Path, locks: Path) -> None:
        self._root, self._locks = Path(root), Path(locks)

    def image(self, image_id: str) -> dict[str, Any]:
        """Note on an image, empty when there is none."""
        return self._read(self._image_file(image_id))

    def label(self, image_id: str, tag: str) -> dict[str, Any]:
        """Note on a label, empty when there is none."""
        return self._read(self._label_file(image_id, tag))

    def update_image(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Merge into the note; keys that exist are replaced."""
        self._update(self._image_file(image_id), info)

    def update_label(self, image_id: str, tag: str, info: Mapping[str, Any]) -> None:
        """Merge into the note; keys that exist are replaced."""
        self._update(self._label_file(image_id, tag), info)

    def remove_image(self, image_id: str) -> None:
        """Drop the note."""
        self._image_file(image_id).unlink(missing_ok=True)

    def remove_label(self, image_id: str, tag: str) -> None:
        """Drop the note."""
        self._label_file(image_id, tag).unlink(missing_ok=True)

    def _image_file(self, image_id: str) -> Path:
        return self._root / "images" / f"{_file_name(image_id)}.json"

    def _label_file(self, image_id: str, tag: str) -> Path:
        return self._root / "labels" / check_tag(tag) / f"{_file_name(image_id)}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            return {}
        try:
            data = read_json(path)
        except IntegrityError as error:
            logger.warning("a note of a client is ignored: %s", error)
            return {}
        if _is_deeper(data, MAX_INFO_LEVELS):
            logger.warning(
                "a note of a client is ignored: it is nested more than %d levels deep.",
                MAX_INFO_LEVELS,
            )
            return {}
        return dict(data) if isinstance(data, dict) else {}

    def check_image(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Refuse what ``update_image`` would refuse, before the image itself is kept.

        Raises
        ------
        InvalidInputError
            It is no plain JSON, or too much with what is noted.
        """
        self._merged(self._image_file(image_id), info)

    def check_label(self, image_id: str, tag: str, info: Mapping[str, Any]) -> None:
        """Refuse what ``update_label`` would refuse, before the label itself is kept.

        Raises
        ------
        InvalidInputError
            It is no plain JSON, or too much with what is noted.
        """
        self._merged(self._label_file(image_id, tag), info)

    def _update(self, path: Path, info: Mapping[str, Any]) -> None:
        with exclusive(self._locks, "infos"):
            write_json_durably(path, self._merged(path, info))

    def _merged(self, path: Path, info: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(info, Mapping):
            raise InvalidInputError('the info must be a JSON object, as in {"comment": "…"}.')
        if _is_deeper(info, MAX_INFO_LEVELS):
            raise InvalidInputError(
                f"the info is nested too deeply; at most {MAX_INFO_LEVELS} levels are kept."
            )
        merged = {**self._read(path), **info}
        try:  # half of a surrogate pair is no text either
            size = len(json.dumps(merged, allow_nan=False, ensure_ascii=False).encode())
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"the info is no plain JSON: {error}.") from error
        if size > MAX_INFO_BYTES:
            raise InvalidInputError(
                f"the info would be {size} bytes, at most {MAX_INFO_BYTES} are kept."
            )
        return merged


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested in each other more than so many times."""
    if isinstance(value, Mapping):
        inner: Iterable[Any] = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    else:
        return False
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)
