"""What other models of the home still have to forget, and whether they can: before anything begins.

A request about what several models know is fulfilled when all have forgotten it. The first one's
versions are sealed by then, so that whoever decides must know beforehand what is left to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_choice import UnlearnChoice, choose_unlearning
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.cases import Case
from segunlearn.errors import SegUnlearnError, UnavailableError
from segunlearn.records.versions import VersionRegistry


@dataclass(frozen=True)
class Left:
    """Requests that stay open until another model has forgotten what they name.

    Parameters
    ----------
    model
        Its name.
    requests
        Their ids.
    possible
        Whether an unlearning there could begin now; only its audit says how it ends.
    what
        A text for people: what is left to do, or why it cannot be done, and what to do instead.
    """

    model: str
    requests: tuple[str, ...]
    possible: bool
    what: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "requests": list(self.requests)}


def left_in_others(
    choice: UnlearnChoice, home: Home, records: Records, cases: Sequence[Case]
) -> tuple[Left, ...]:
    """Look into every other model that knows what a choice is about; nothing is changed.

    Parameters
    ----------
    choice
        Of ``unlearn_choice.choose_unlearning`` for one model.
    home, records
        Of the installation.
    cases
        Every labelled case at hand, those marked for forgetting too.
    """
    models: dict[str, list[str]] = {}
    for request in (*choice.requests, *choice.elsewhere, *choice.there):
        for model in choice.others.get(request.request_id, ()):
            models.setdefault(model, []).append(request.request_id)
    found: list[Left] = []
    for model, ids in sorted(models.items()):

        def why_not(asked: Iterable[str], model: str = model) -> str:
            order = UnlearnOrder(model, requests=tuple(asked))
            try:
                choose_unlearning(order, home, records, VersionRegistry(home.model(model)), cases)
            except UnavailableError:
                raise  # that is no answer
            except SegUnlearnError as error:
                return str(error)
            return ""

        groups: dict[str, list[str]] = {}
        whys = {tuple(ids): why_not(ids)}
        if len(ids) > 1 and any(whys.values()):  # they are told apart
            whys = {(one,): why_not([one]) for one in ids}
        for part, why in whys.items():
            why = why.replace(f"forget request {part[0]}", "the request")
            groups.setdefault(why, []).extend(part)
        found += [Left(model, tuple(g), not why, _said(model, g, why)) for why, g in groups.items()]
    return tuple(found)


def _said(model: str, ids: Sequence[str], why: str) -> str:
    stay = "1 request stays" if len(ids) == 1 else f"{len(ids)} requests stay"
    if not why:
        return (
            f"{stay} open after this: {model} has to forget, too (segunlearn unlearn --model "
            f"{model}). As far as can be told now, nothing stands in the way of that."
        )
    return (
        f"{stay} open after this: {model} knows what is to be forgotten, and cannot be unlearned "
        f"as things are: {why.rstrip('.')}. Or train {model} from random weights (segunlearn train "
        f"--again --model {model}): 'segunlearn unlearn --model {model}' then seals its versions "
        f"that know it. Until then {model} keeps what it learned."
    )
