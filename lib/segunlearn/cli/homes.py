"""What a command that shows a home asks first: a mistyped one would look like an empty one."""

from __future__ import annotations

from pathlib import Path

from segunlearn.app.home_store import NOTE
from segunlearn.app.options import Home
from segunlearn.cli.common import home_of, no_store_in
from segunlearn.errors import NotFoundError


def existing_home(path: Path, model: str = "") -> Home:
    """Home folder of an option of a command that only shows it.

    Parameters
    ----------
    path
        It may hold no model yet, where a server was started and nothing was trained.
    model
        Has to be one of its models, where there are any; empty: none is asked for.

    Raises
    ------
    InvalidInputError
        Nothing was ever written there: probably another home is meant.
    NotFoundError
        There are other models only.
    """
    place = home_of(path)
    there = place.models()
    if not there and not any(p.is_file() for p in (place.database, place.root / NOTE)):
        raise no_store_in(place)
    if model and there and model not in there:
        raise NotFoundError(
            f"{place.root}: there is no model {model!r}; models here: {', '.join(there)}."
        )
    return place
