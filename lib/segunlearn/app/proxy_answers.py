"""Answers of a PACS in the DICOM JSON model, whose addresses shall lead through this server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def rewrite_addresses(content: bytes, here: str) -> tuple[bytes, int]:
    """Let the addresses in an answer lead through this server; returns also how many items it has.

    A PACS names itself in RetrieveURL and BulkDataURI; browsers often cannot reach it, and must
    not. What is no JSON stays as it is, and has no items. Items are read one after another: as a
    whole, an answer would need a dozen times its size.

    >>> rewrite_addresses(b'{"BulkDataURI": "http://pacs:8042/dw/studies/1/bulk/2"}', "http://me/w")
    (b'{"BulkDataURI": "http://me/w/studies/1/bulk/2"}', 1)
    """
    count = 0
    try:
        text = content.decode(json.detect_encoding(content))
        is_list = text.startswith("[", _after_space(text, 0))
        changed = bytearray(b"[" if is_list else b"")
        for item in _items(text):
            changed += b"," if count else b""
            count += 1
            changed += json.dumps(_rewritten(item, here), ensure_ascii=False).encode(
                errors="replace"  # half of a pair, which is no character
            )
    except (ValueError, RecursionError):
        return content, 0
    changed += b"]" if is_list else b""
    return bytes(changed), count


def _items(text: str) -> Iterator[Any]:
    """Yield the items of a list, or the one thing that a text of JSON holds."""
    here = _after_space(text, 0)
    if not text.startswith("[", here):
        item, here = _DECODER.raw_decode(text, here)
        yield item
    else:
        here = _after_space(text, here + 1)
        more = not text.startswith("]", here)
        while more:
            item, here = _DECODER.raw_decode(text, here)
            yield item
            here = _after_space(text, here)
            more = text.startswith(",", here)
            here = _after_space(text, here + 1) if more else here
        if not text.startswith("]", here):
            raise ValueError("the list does not end")
        here += 1
    if _after_space(text, here) != len(text):
        raise ValueError("something follows")


def _after_space(text: str, here: int) -> int:
    found = _SPACE.match(text, here)
    return found.end() if found else here


def _rewritten(node: Any, here: str) -> Any:
    if isinstance(node, list):
        return [_rewritten(item, here) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {key: _rewritten(value, here) for key, value in node.items()}
    if isinstance(node.get("BulkDataURI"), str):
        changed["BulkDataURI"] = _address(node["BulkDataURI"], here)
    if node.get("vr") == "UR" and isinstance(node.get("Value"), list):
        changed["Value"] = [_address(v, here) if isinstance(v, str) else v for v in node["Value"]]
    return changed


def _address(url: str, here: str) -> str:
    head, found, tail = url.partition("/studies/")
    return f"{here}/studies/{tail}" if found and head.startswith(("http://", "https://")) else url
