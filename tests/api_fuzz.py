"""Requests made from the server's own description, right and wrong ones, to every operation.

Used by a test (few) and by ``tests/benchmarks/fuzz_api.py`` (10,000).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable

#: More levels than an answer can hold, fewer than a reader of JSON takes.
_NESTED = "[" * 300 + "]" * 300
#: Fields of forms that hold JSON.
_JSON_FIELDS = ("info", "params")

_MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


@dataclass
class Found:
    """What the server answered."""

    requests: int = 0
    operations: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    #: Operations of which few different requests can be made.
    poor: set[str] = field(default_factory=set)
    slowest: tuple[float, str] = (0.0, "")


def fuzz(
    url: str,
    headers: Mapping[str, str],
    known: Mapping[str, Sequence[str]],
    examples: int,
    chosen: int = 0,
    found: Found | None = None,
    *,
    wrong: bool = True,
) -> Found:
    """Send ``examples`` requests to each operation; ``known`` are real values of parameters.

    Parameters
    ----------
    url, headers
        Of the server, and of somebody who may do everything.
    known
        By a parameter's name; given in place of half of the generated ones.
    examples
        For each operation.
    chosen
        Seed.
    found
        Of an earlier turn, to add to; what was poor then is left out.
    wrong
        Also requests that break the description, which take longer to make.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=dict(headers))
    found, rng = found or Found(), random.Random(chosen)
    found.operations = 0
    with requests.Session() as session:
        for result in schema.get_all_operations():
            found.operations += 1
            operation = result.ok()
            name = f"{operation.method.upper()} {operation.path}"
            if name in found.poor:
                continue
            cases = _cases(operation, examples, chosen, _MODES if wrong else _MODES[:1])
            if len(cases) < examples / 2:
                found.poor.add(name)
            for case in cases:
                _fill(case, known, rng)
                _send(session, case, url, headers, name, found)
    return found


def _cases(operation: Any, examples: int, chosen: int, modes: Sequence[Any]) -> list[Any]:
    """Right and wrong requests; nothing wrong can be made of one without parameters."""
    cases: list[Any] = []
    for mode in modes:
        strategy = operation.as_strategy(generation_mode=mode)

        @seed(chosen)
        @settings(
            max_examples=-(-examples // len(modes)), deadline=None, database=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=strategy)
        def make(case: Any) -> None:
            cases.append(case)

        with suppress(Unsatisfiable):
            make()
    return cases


def _fill(case: Any, known: Mapping[str, Sequence[str]], rng: random.Random) -> None:
    for place in (case.path_parameters, case.query):
        for name in list(place or {}):
            if name in known and rng.random() < 0.5:
                place[name] = rng.choice(known[name])
    if isinstance(case.body, dict) and rng.random() < 0.5:
        if case.media_type == "application/json":
            case.body["nested"] = json.loads(_NESTED)
        else:
            case.body.update(dict.fromkeys(_JSON_FIELDS, f'{{"nested": {_NESTED}}}'))


def _send(
    session: requests.Session,
    case: Any,
    url: str,
    headers: Mapping[str, str],
    name: str,
    found: Found,
) -> None:
    sent = case.as_transport_kwargs(base_url=url)
    sent["headers"] = {**sent["headers"], **headers}
    found.requests += 1
    try:
        with session.request(**{**sent, "timeout": 120, "stream": True}) as answer:
            found.statuses[answer.status_code] += 1
            seconds = answer.elapsed.total_seconds()
            if seconds > found.slowest[0]:
                found.slowest = (seconds, name)
            events = answer.headers.get("content-type", "").startswith("text/event-stream")
            if answer.status_code >= 500:
                found.faults.append(f"{name}: {answer.status_code} {answer.text[:300]}")
            elif not events:  # a stream of events never ends
                _ = answer.content
    except (requests.ConnectionError, requests.Timeout) as error:
        found.faults.append(f"{name}: {type(error).__name__} {error!s:.200}")
    except (ValueError, UnicodeError):  # the client itself cannot send that
        found.requests -= 1
