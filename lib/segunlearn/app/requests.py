"""Requests of background tasks: checked before a child process is started for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segunlearn.app.datastores import StudiesDatastore
from segunlearn.app.datastores.infos import check_tag
from segunlearn.app.datastores.studies import FINAL, ORIGINAL
from segunlearn.app.site_choice import AUTO, BASE
from segunlearn.errors import InvalidInputError, NotFoundError


def check_prediction_tag(tag: Any) -> str:
    """Return the tag under which a prediction may be kept, ``original`` by default.

    Raises
    ------
    InvalidInputError
        It cannot be a tag, or it is ``final``: predictions must not become training data unseen.
    """
    checked = check_tag(tag or ORIGINAL)
    if checked == FINAL:
        raise InvalidInputError(
            "label_tag 'final' is for labels that a person has finished; predictions are kept "
            "under 'original' or a tag of your own."
        )
    return checked


def check_scoring(
    method: str, options: Mapping[str, Any], methods: Sequence[str]
) -> dict[str, Any]:
    """Return the request of a scoring, fit for JSON.

    Raises
    ------
    NotFoundError
        There is no such method.
    InvalidInputError
        A tag is wrong.
    """
    if method not in methods:
        raise NotFoundError(
            f"there is no scoring method {method!r:.80}; methods are {', '.join(methods)}."
        )
    return {
        "method": method,
        "y": check_tag(options.get("y") or FINAL),
        "y_pred": check_tag(options.get("y_pred") or ORIGINAL),
    }


def asked_site(request: Mapping[str, Any]) -> str:
    """Read which site a client asks for; of a list, as ``/info`` gives it, the first.

    Raises
    ------
    InvalidInputError
        It is no text.
    """
    asked = request.get("site") or AUTO
    if isinstance(asked, list):
        asked = asked[0]
    if not isinstance(asked, str) or len(asked) > 300:
        raise InvalidInputError(f"site {str(asked)!r:.40}: name one site, or {AUTO!r} or {BASE!r}.")
    return asked.strip()


def check_batch(
    model: str, images: str, options: Mapping[str, Any], studies: StudiesDatastore
) -> dict[str, Any]:
    """Return the request of a batch inference, fit for JSON.

    Raises
    ------
    NotFoundError
        There is no such image.
    InvalidInputError
        An option is wrong.
    """
    chosen = options.get("images", images)
    if isinstance(chosen, list):
        chosen = [studies.record(str(i)).id for i in chosen]
    elif chosen not in ("all", "labeled", "unlabeled"):
        raise InvalidInputError(
            f"images {chosen!r:.80}: use all, labeled, unlabeled, or a list of ids."
        )
    try:
        largest = int(options.get("max_batch_size") or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError("max_batch_size must be a whole number.") from error
    if largest < 0:
        raise InvalidInputError("max_batch_size must not be negative; 0 means all.")
    tag = check_prediction_tag(options.get("label_tag"))
    return {
        "model": model, "images": chosen, "label_tag": tag, "max_batch_size": largest,
        "site": asked_site(options),
    }  # fmt: skip
