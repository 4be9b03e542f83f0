"""Search filters of QIDO-RS (PS3.18 section 8.3.4) as conditions of SQLite."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from segunlearn.errors import InvalidInputError

INTEGER_VRS = ("IS", "US", "UL")
#: Longest value with wildcards, and most filters: SQLite does not take any number.
_LONGEST, _MOST = 500, 100


def conditions_of(
    filters: Mapping[str, Any], kept: Sequence[str], fuzzymatching: bool
) -> tuple[list[str], list[Any]]:
    """Conditions in SQL, and the values of their question marks.

    Parameters
    ----------
    filters
        Keyword or tag to value.
    kept
        Keywords that the index keeps.
    fuzzymatching
        Match any part of a person's name.

    Raises
    ------
    InvalidInputError
        A filter names an attribute that is not kept, or its value cannot be matched.
    """
    if len(filters) > _MOST:
        raise InvalidInputError(f"{len(filters)} search filters: {_MOST} are taken at most.")
    conditions: list[str] = []
    values: list[Any] = []
    for key, criterion in filters.items():
        keyword = _keyword(key, kept)
        text = str(criterion)
        if text in ("", "*"):
            continue  # universal matching
        if keyword == "ModalitiesInStudy":
            inner, inner_values = _match("Modality", text, False)
            conditions.append(
                f"StudyInstanceUID IN (SELECT StudyInstanceUID FROM files WHERE {inner})"
            )
            values.extend(inner_values)
            continue
        condition, found = _match(keyword, text, fuzzymatching)
        conditions.append(condition)
        values.extend(found)
    return conditions, values


def _keyword(key: str, kept: Sequence[str]) -> str:
    compact = key.replace(",", "").strip("()")
    keyword = keyword_for_tag(int(compact, 16)) if _is_tag(compact) else key
    if keyword == "ModalitiesInStudy" or keyword in kept:
        return keyword
    known = "is not kept in the index" if tag_for_keyword(keyword) else "is no DICOM attribute"
    raise InvalidInputError(f"search filter {key!r} {known}. Use one of {', '.join(sorted(kept))}.")


def _is_tag(text: str) -> bool:
    return len(text) == 8 and all(c in "0123456789abcdefABCDEF" for c in text)


def _match(keyword: str, text: str, fuzzymatching: bool) -> tuple[str, list[Any]]:
    vr = dictionary_VR(keyword)
    if vr in INTEGER_VRS:
        if not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):  # what SQLite can hold
            raise InvalidInputError(f"search filter {keyword}: {text!r} is not a whole number.")
        return f"{keyword} = ?", [int(text)]
    if vr in ("DA", "TM") and "-" in text:
        first, _, last = text.partition("-")
        return f"{keyword} >= ? AND {keyword} <= ?", [first.strip(), last.strip() or "9" * 14]
    if vr in ("UI", "CS") and ("\\" in text or "," in text):
        items = [t.strip() for t in text.replace("\\", ",").split(",") if t.strip()]
        return f"{keyword} IN ({', '.join('?' * len(items))})", list(items)
    if vr == "PN" or (("*" in text or "?" in text) and vr != "UI"):
        if len(text) > _LONGEST:
            raise InvalidInputError(
                f"search filter {keyword}: more than {_LONGEST} characters. Shorten it."
            )
        pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        pattern = pattern.replace("*", "%").replace("?", "_")
        if fuzzymatching and vr == "PN":
            pattern = f"%{pattern}%"
        return f"{keyword} LIKE ? ESCAPE '\\'", [pattern]
    return f"{keyword} = ?", [text]
