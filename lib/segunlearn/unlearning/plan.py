"""What each way of forgetting would take, and which one is advised: before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from segunlearn.unlearning.sets import SetName

Level = Literal["hidden", "unlearned", "retrained"]

#: A retraining that takes no longer than this is advised whatever level is needed: it is exact.
MINUTES_OF_A_RETRAIN: Final = 15 * 60.0
#: A step with a teacher beside the student, in steps of plain training.
WITH_TEACHER: Final = 1.4


@dataclass(frozen=True)
class Way:
    """One way of forgetting.

    Parameters
    ----------
    method
        Key of ``METHODS``.
    level
        Highest level that its audit can be expected to find; only the audit decides.
    seconds
        Expected wall time without the audit; None when no run says how fast this machine is.
    memory_bytes
        Expected for weights, gradients, optimiser and activations.
    reads
        Sets it reads.
    measured
        The time comes from an earlier run of this method here, not from the training's.
    words
        What to know of it.
    """

    method: str
    level: Level
    seconds: float | None
    memory_bytes: int
    reads: tuple[SetName, ...]
    measured: bool
    words: str


def advise(needed: Level, ways: Sequence[Way], *, people: int, least: int) -> tuple[str, str]:
    """Choose a way.

    Parameters
    ----------
    needed
        Level to reach.
    ways
        What there is; one of them retrains.
    people
        Persons to forget.
    least
        Persons without whom an audit cannot show the level ``"unlearned"``; 0: never.

    Returns
    -------
    method, why
        The second in words.

    Examples
    --------
    >>> again = Way("retrain", "retrained", 120.0, 0, ("retain",), False, "")
    >>> advise("unlearned", [again], people=1, least=4)[0]
    'retrain'
    """
    (again,) = (w for w in ways if w.level == "retrained")
    if needed == "retrained":
        return again.method, "the level 'retrained' is reached by training again alone."
    if again.seconds is not None and again.seconds <= MINUTES_OF_A_RETRAIN:
        return again.method, (
            f"training again takes about {duration(again.seconds)} and is exact; nothing that is "
            "approximate is worth less than that."
        )
    if needed == "unlearned" and (least == 0 or people < least):
        enough = f"at least {least} are needed" if least else "more unseen people are needed"
        return again.method, (
            f"of {people} forgotten person(s) an audit cannot show that they do not look trained "
            f"on ({enough}), so that nothing but training again would be published."
        )
    fitting = [w for w in ways if w.level == needed]
    best = min(fitting or [again], key=lambda w: w.seconds if w.seconds is not None else 0.0)
    if best is again or best.seconds is None or again.seconds is None:
        return best.method, f"it is the way to the level {needed!r}; the audit decides."
    return best.method, (
        f"it takes about {duration(best.seconds)} where training again takes "
        f"{duration(again.seconds)}; the audit decides whether it is enough."
    )


@dataclass(frozen=True)
class Plan:
    """What would be done, and what it would take; nothing of it has happened.

    Parameters
    ----------
    requests
        ``id``, ``state``, ``needed`` and what would become of it, one each.
    original
        Version that is unlearned from; empty when none is.
    studies, people, retained, unseen_people
        Sizes of the sets.
    level
        To reach.
    ways
        See :class:`Way`.
    recommended, why
        See :func:`advise`; empty when nothing has to be unlearned.
    others
        What other models still have to forget afterwards: ``model``, ``requests``, whether it is
        ``possible``, and ``what`` to do.
    """

    requests: tuple[dict[str, str], ...]
    original: str
    studies: int
    people: int
    retained: int
    unseen_people: int
    level: str
    ways: tuple[Way, ...]
    recommended: str
    why: str
    others: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Text for a terminal."""
        found = [f"request {r['id']} ({r['state']}): {r['what']}" for r in self.requests]
        found += [str(one["what"]) for one in self.others]
        if not self.original:
            return found
        found.append(
            f"from {self.original}: {self.studies} studies of {self.people} person(s) to forget, "
            f"{self.retained} to keep, {self.unseen_people} people never seen; level: {self.level}"
        )
        for way in self.ways:
            time = "?" if way.seconds is None else f"about {duration(way.seconds)}"
            source = ", measured here" if way.measured else ""
            found.append(
                f"  {way.method:22} {way.level:10} {time}{source}, "
                f"{way.memory_bytes / 2**30:.1f} GiB. {way.words}"
            )
        found.append(f"advised: {self.recommended}. {self.why[:1].upper()}{self.why[1:]}")
        return found


def duration(seconds: float) -> str:
    """Say a time in words.

    Examples
    --------
    >>> duration(42), duration(200), duration(9000)
    ('42 s', '3 min', '2 h 30 min')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
