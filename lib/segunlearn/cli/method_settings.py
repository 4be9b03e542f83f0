"""Settings of an unlearning method from a command line: ``--set NAME=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segunlearn.errors import InvalidInputError


def settings_of(method: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings of a method from NAME=VALUE, each of its field's type.

    Raises
    ------
    NotFoundError
        There is no such method.
    InvalidInputError
        A setting is unknown, or its value has the wrong type.
    """
    from segunlearn.unlearning import method_named

    if not pairs:
        return {}
    if not method:
        raise InvalidInputError("--set is about a method; name it by --method.")
    fields = {
        name: field
        for name, field in method_named(method).settings.__dataclass_fields__.items()
        if name != "key"
    }
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or name not in fields:
            raise InvalidInputError(
                f"--set {pair!r:.60}: write NAME=VALUE; {method} has {', '.join(sorted(fields))}."
            )
        found[name] = _typed(pair, text, fields[name].default)
    return found


def _typed(pair: str, text: str, example: Any) -> Any:
    """Read a text as the type of a setting's default."""
    if isinstance(example, bool):
        if text.lower() not in ("true", "false"):
            raise InvalidInputError(f"--set {pair!r:.60}: must be true or false.")
        return text.lower() == "true"
    if isinstance(example, tuple):
        return (
            tuple(_typed(pair, t.strip(), example[0]) for t in text.split(",")) if example else ()
        )
    if example is None:
        raise InvalidInputError(f"--set {pair!r:.60}: this setting cannot be given as text.")
    try:
        return type(example)(text)
    except (TypeError, ValueError) as error:
        kind = {int: "whole number", float: "number"}.get(type(example), type(example).__name__)
        raise InvalidInputError(f"--set {pair!r:.60}: must be a {kind}.") from error
