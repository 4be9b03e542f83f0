"""``multipart/form-data``: written for uploads, read from inferences. Plain Python."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping


def encode(
    fields: Mapping[str, str], files: Mapping[str, tuple[str, bytes]] | None = None
) -> tuple[bytes, str]:
    """Write a body.

    Parameters
    ----------
    fields
        Texts by name.
    files
        File name and content by name.

    Returns
    -------
    bytes, str
        The body and its content type.
    """
    boundary = f"segunlearn-{uuid.uuid4().hex}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + value.encode()
        + b"\r\n"
        for name, value in fields.items()
    ]
    for name, (file_name, content) in (files or {}).items():
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; '
            f'filename="{file_name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        parts.append(head.encode() + content + b"\r\n")
    parts.append(f"--{boundary}--\r\n".encode())
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def decode(body: bytes, content_type: str) -> dict[str, tuple[str, bytes]]:
    """Read a body.

    Returns
    -------
    dict
        File name (empty for a field) and content by name.

    Raises
    ------
    ValueError
        It is no whole multipart body.

    Examples
    --------
    >>> decode(*encode({"params": "{}"}, {"image": ("mask.nrrd", b"NRRD")}))
    {'params': ('', b'{}'), 'image': ('mask.nrrd', b'NRRD')}
    """
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    if found is None:
        raise ValueError("the answer names no boundary between its parts")
    mark = b"--" + found.group(1).encode()
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise ValueError("the answer ends in the middle")
    parts: dict[str, tuple[str, bytes]] = {}
    for piece in pieces[1:-1]:
        head, sign, content = piece.partition(b"\r\n\r\n")
        name = re.search(rb'[ ;]name="([^"]*)"', head)
        if not sign or name is None:
            raise ValueError("a part of the answer has no name")
        file = re.search(rb'filename="([^"]*)"', head)
        parts[name.group(1).decode()] = (file.group(1).decode() if file else "", content)
    return parts
