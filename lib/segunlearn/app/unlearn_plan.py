"""The plan of an unlearning, from what the ledger says of earlier runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from segunlearn.app.audit_choice import Choice, seconds_of, views_of
from segunlearn.app.audit_references import seconds_for
from segunlearn.app.records import Records
from segunlearn.app.unlearn_choice import RENAMED, UNMEASURED, UnlearnChoice
from segunlearn.app.unlearn_order import BY_LEVEL, UnlearnOrder
from segunlearn.app.unlearn_others import Left
from segunlearn.audit.statistics import detectable_auc
from segunlearn.cases import persons_of
from segunlearn.networks import ModelConfig, build_network
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.unlearning import METHODS
from segunlearn.unlearning.plan import WITH_TEACHER, Level, Plan, Way, advise

_LOOKED_AT: Final = 500
_FORGOTTEN_AGAIN: Final = (
    "stays forgotten: the version that comes back knows it, so that it is "
    "unlearned from that again and audited; nothing is restored unless it passes"
)
_OUTDATED: Final = {
    True: "older versions that know it are sealed",
    False: "the versions that knew it are destroyed already: nothing is left to seal",
}
_WORDS: Final[Mapping[str, str]] = {
    "hidden": "Hides the study; whoever has the weights can bring it back. Never called erasure.",
    "unlearned": "Also weights that are attacked should not give it back; the audit says whether.",
    "retrained": "Exact: the new weights never saw it.",
}


def plan_of(
    choice: UnlearnChoice, records: Records, order: UnlearnOrder, left: Sequence[Left]
) -> Plan:
    """Estimate what each way would take, and advise one.

    Parameters
    ----------
    choice
        What is to be done.
    records
        Whose ledger tells how long trainings and unlearnings took.
    order
        Whose method, if it names one, is among the ways.
    left
        Of ``unlearn_others.left_in_others``.
    """
    requests = [
        *(_line(r, "comes back") for r in choice.back),
        *(
            _line(r, (_FORGOTTEN_AGAIN if choice.back else "is unlearned") + _then(choice, r, left))
            for r in choice.requests
        ),
        *(_line(r, "only hidden so far: is unlearned with them") for r in choice.also),
        *(_line(r, _OUTDATED[choice.is_sealed] + _then(choice, r, left)) for r in choice.elsewhere),
        *(
            _line(
                r,
                f"only {', '.join(choice.others[r.request_id])} knows it: unlearn it there"
                + _but(r, left),
            )
            for r in choice.there
        ),
        *(_line(r, UNMEASURED) for r in choice.unmeasured),
        *(_line(r, RENAMED) for r in choice.renamed),
        *(_line(r, "no version was taught it: fulfilled at once") for r in choice.never),
    ]
    sets, others = choice.sets, tuple(one.to_json() for one in left)
    if choice.original is None or sets is None:
        return Plan(tuple(requests), "", 0, 0, 0, 0, choice.level, (), "", "", others)
    names = dict.fromkeys([*BY_LEVEL.values(), "erode_and_repair_lora", order.method])
    weights = sum(p.numel() for p in build_network(sets.config, 0).parameters())
    ways = tuple(_way(n, sets, records, order, weights) for n in names if n)
    people = len(persons_of(sets.forget))
    unseen = len(persons_of(sets.test))
    power = order.policy.weakest_power
    least = next((n for n in range(2, 200) if detectable_auc(n, max(2, unseen)) <= power), 0)
    method, why = advise(cast(Level, choice.level), ways, people=people, least=least)
    return Plan(
        requests=tuple(requests),
        original=choice.original.version,
        studies=len(sets.forget),
        people=people,
        retained=len(sets.retain),
        unseen_people=len(persons_of([*sets.calibration, *sets.test])),
        level=choice.level,
        ways=ways,
        recommended=method,
        why=why,
        others=others,
    )


def _then(choice: UnlearnChoice, request: ForgetRequest, left: Sequence[Left]) -> str:
    """Say which other models a request waits for."""
    others = choice.others.get(request.request_id)
    if not others:
        return ""
    return f"; then in {', '.join(others)}: fulfilled only after that" + _but(request, left)


def _but(request: ForgetRequest, left: Sequence[Left]) -> str:
    """Say in which of them a request cannot be unlearned now."""
    blocked = [x.model for x in left if not x.possible and request.request_id in x.requests]
    return f", but {', '.join(blocked)} cannot be unlearned as things are" if blocked else ""


def _line(request: ForgetRequest, what: str) -> dict[str, str]:
    return {
        "id": request.request_id, "state": request.state, "needed": request.needed, "what": what,
    }  # fmt: skip


def _way(name: str, sets: Choice, records: Records, order: UnlearnOrder, weights: int) -> Way:
    level = next((lv for lv, m in BY_LEVEL.items() if m == name), "")
    if not level:
        level = "unlearned" if name.startswith("erode") else "hidden"
    seconds, measured = _seconds(name, sets, records, order)
    settings = METHODS[name].settings
    return Way(
        method=name,
        level=cast(Level, level),
        seconds=seconds,
        memory_bytes=memory_of(sets.config, weights, getattr(settings(), "batch_size", 4)),
        reads=METHODS[name].reads,
        measured=measured,
        words=_WORDS[level],
    )


def _seconds(
    name: str, sets: Choice, records: Records, order: UnlearnOrder
) -> tuple[float | None, bool]:
    if name == "retrain":
        return seconds_for(sets, 1), False
    patches = _patches(name, dict(order.settings) if order.method == name else {}, sets)
    for row in records.ledger.rows(model=order.model, kind="unlearn", limit=_LOOKED_AT):
        if row.parameters.get("method") == name:
            then = _patches(name, row.parameters.get("settings") or {}, sets)
            cost = row.parameters.get("cpu_seconds")
            if isinstance(cost, int | float) and then:
                return float(cost) * patches / then, True
    trained = sets.row.parameters
    settings = trained.get("settings")
    if not isinstance(settings, dict):
        return None, False
    epochs = int(trained.get("epochs_done") or settings.get("epochs") or 0)
    drawn = views_of({**settings, "epochs": epochs}) * sets.row.cases_count
    if not drawn:
        return None, False
    return seconds_of(sets.row) / drawn * patches * WITH_TEACHER, False


def _patches(name: str, changed: Mapping[str, Any], sets: Choice) -> float:
    """Count the patches that go through the network, from a method's settings."""
    settings = METHODS[name].settings()
    values = {k: changed.get(k, getattr(settings, k)) for k in vars(settings)}
    batch = float(values.get("batch_size", 4))
    if "epochs" in values:
        return float(values["epochs"]) * len(sets.retain) * float(values.get("inits", 1))
    steps = float(values.get("steps") or values.get("max_steps") or 30)
    return steps * batch * max(1, len(METHODS[name].reads))


def memory_of(config: ModelConfig, weights: int, batch: int) -> int:
    """Bytes for a number of weights (five copies: two networks, gradient, two moments) and maps.

    A U-Net keeps about six maps of each level for the backward pass, twice for the decoder.
    """
    voxels = math.prod(config.patch_size)
    maps = sum(
        12 * features * voxels / 2 ** (config.spatial_dims * min(level, 4))
        for level, features in enumerate(config.features)
    )
    return int(4 * (5 * weights + batch * maps))
