"""Words for states, reasons, levels, times and numbers. Plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

#: Reasons in the order offered, with what people call them.
REASONS = {
    "consent_withdrawn": "Consent withdrawn",
    "wrong_patient": "Wrong patient",
    "wrong_label": "Wrong label",
    "quality": "Image quality",
    "retention_expired": "Retention period over",
    "other": "Other (say why)",
}

#: States with what people call them, and the colour of their dot.
STATES = {
    "proposed": ("Proposed", "#8a8f98"),
    "requested": ("Requested", "#d99a00"),
    "approved": ("Approved", "#2f7de1"),
    "working": ("Not yet forgotten", "#7b4fd0"),
    "fulfilled": ("Forgotten", "#2e9e4f"),
    "refused": ("Tried, not forgotten", "#d23f3f"),
    "purged": ("Erased", "#1f6b39"),
    "restored": ("Restored", "#8a8f98"),
    "withdrawn": ("Withdrawn", "#8a8f98"),
    "dismissed": ("Dismissed", "#8a8f98"),
}

#: What a live mark's state means for the study that is shown; the strongest counts.
RANK = {state: i for i, state in enumerate(
    ("requested", "approved", "working", "refused", "fulfilled", "purged"), start=1
)}  # fmt: skip

#: One sentence for each state of the loaded study.
MEANING = {
    "free": "Not marked: it may be used for training.",
    "proposed": "Not marked: another system asks for it, and nobody has decided. It may be used "
    "for training.",
    "requested": "Marked: out of training. Waits for an administrator's approval.",
    "approved": "Marked: out of training. Approved, and waits to be taken out of the model.",
    "working": "Marked: out of training. An unlearning of it began, but it is not yet forgotten.",
    "refused": "Marked: out of training, but not forgotten: the last unlearning was stopped, "
    "failed, or did not pass its audit. It can be tried again.",
    "fulfilled": "Forgotten by the served model. It can be restored until it, or what was "
    "unlearned together with it, is purged.",
    "purged": "Erased: every older model that knew it is destroyed.",
}

KINDS = {"study": "Study", "series": "Series", "patient": "Patient", "structure": "Structure"}

#: What the runs are called.
RUNS = {
    "plan": "Dry run of an unlearning",
    "unlearn": "Unlearning",
    "train": "Training",
    "site_adapt": "Adapting to a site",
    "audit": "Audit",
    "meta_train": "Meta-training",
    "replay": "Training a generator",
    "forget_feature": "Forgetting a feature",
    "restore": "Restoring",
    "purge": "Purging",
}

#: Levels of assurance, lowest first.
LEVELS = ("none", "hidden", "unlearned", "retrained")

OUTCOMES = {"passed": "Passed", "refused": "Refused", "inconclusive": "Inconclusive",
            "damaged": "Damaged"}  # fmt: skip


def state_of(about: Mapping[str, Any], unlearned: Collection[str] = ()) -> str:
    """Say the state of a request; what is in work may wait, and what is fulfilled may be hidden.

    ``unlearned`` are the requests that a run works on now.

    Examples
    --------
    >>> state_of({"state": "working", "reached": "hidden", "needed": "unlearned"})
    'Only hidden so far'
    """
    case = _case_of(about, unlearned)
    words = {
        "running": "Being unlearned",
        "short": f"Only {about.get('reached')} so far",
        "elsewhere": "Another model knows it",
        "hidden": "Hidden",
    }
    return words.get(case) or STATES.get(case, (case,))[0]


def meaning_of(about: Mapping[str, Any], unlearned: Collection[str] = ()) -> str:
    """Say in a sentence what the state of a request means for its study; see ``state_of``.

    Examples
    --------
    >>> meaning_of({"state": "working", "reached": "unlearned", "needed": "unlearned"})
    'Marked: out of training. One model forgot it, another model still knows it.'
    """
    case = _case_of(about, unlearned)
    words = {
        "running": "Marked: out of training. It is being taken out of the model now.",
        "short": f"Marked: out of training. It is only {about.get('reached')} so far and has to be "
        f"{about.get('needed')}: unlearn it again.",
        "elsewhere": "Marked: out of training. One model forgot it, another model still knows it.",
        "hidden": "Hidden by the served model, whose weights may still hold it, as was asked. It "
        "can be restored.",
    }
    return words.get(case) or MEANING.get(case, "")


def _case_of(about: Mapping[str, Any], unlearned: Collection[str]) -> str:
    """Tell apart what one state of a request stands for; else the state itself."""
    state, reached = str(about["state"]), str(about.get("reached") or "none")
    if state == "working" and about.get("request_id") in unlearned:
        return "running"
    if state == "working" and reached != "none":
        return "short" if _is_short(about) else "elsewhere"
    return "hidden" if (state, reached) == ("fulfilled", "hidden") else state


def _is_short(about: Mapping[str, Any]) -> bool:
    """Whether a request has not reached what it needs."""
    reached, needed = str(about.get("reached") or "none"), str(about.get("needed") or "none")
    both = reached in LEVELS and needed in LEVELS
    return both and LEVELS.index(reached) < LEVELS.index(needed)


def who_marked(request: Mapping[str, Any]) -> str:
    """Say who wants it: of another system's proposal, who agreed to it.

    Examples
    --------
    >>> who_marked({"marked_by": "system", "agreed_by": "anna"}), who_marked({"marked_by": "bob"})
    ('system, anna agreed', 'bob')
    """
    names = [str(request.get("marked_by") or "–")]
    names += [f"{request['agreed_by']} agreed"] if request.get("agreed_by") else []
    return ", ".join(names)


def target(of: Mapping[str, Any]) -> str:
    """Name what a request is about.

    Examples
    --------
    >>> target({"kind": "study", "id": "1.2.826.0.1.3680043.8.498.1"})
    'Study …6.0.1.3680043.8.498.1'
    """
    kind = str(of["kind"])
    return f"{KINDS.get(kind, kind)} {short(str(of['id']), 22)}"


def count(number: int, one: str, many: str) -> str:
    """Say how many.

    Examples
    --------
    >>> count(1, "study", "studies"), count(3, "study", "studies")
    ('1 study', '3 studies')
    """
    return f"{number} {one if number == 1 else many}"


def squeeze(words: str) -> str:
    """Write a line that was meant for a terminal without its columns.

    Examples
    --------
    >>> squeeze("  retrain      about 5 s")
    'retrain about 5 s'
    """
    return " ".join(words.split())


def sentence(words: str) -> str:
    """Begin a line with a capital.

    Examples
    --------
    >>> sentence("a plan; nothing was changed")
    'A plan; nothing was changed'
    """
    words = squeeze(words)
    return words[:1].upper() + words[1:]


def plan_question(who: str, plan: Mapping[str, Any]) -> tuple[str, str]:
    """Say what a plan would do, what it leaves open, and what is typed to confirm it."""
    left = [str(one["what"]) for one in plan.get("others", ())]
    if not plan["original"]:
        found = Counter(squeeze(str(one["what"])) for one in plan["requests"])
        what = [f"{count(n, 'request', 'requests')}: {w}." for w, n in found.items()]
        return "\n".join((f"{who}: no new weights are made. Go on?", *what, *left)), "unlearn"
    people, studies = count(int(plan["people"]), "person", "people"), int(plan["studies"])
    advice = sentence(plan["lines"][-1]) if plan["lines"] else ""
    open_after = "".join(f"\n{line}" for line in left)
    return (
        f"{who}: unlearn {count(studies, 'study', 'studies')} of {people} from version "
        f"{plan['original']}, to the level {plan['level']}?\n{advice}\nThe result serves only if "
        f"an audit passes it; until then nothing changes. Dry run shows the whole plan.{open_after}"
    ), str(studies)


def short(uid: str, length: int = 16) -> str:
    """Shorten an identifier, keeping its end, which tells UIDs apart.

    Examples
    --------
    >>> short("1.2.826.0.1.3680043.8.498.1"), short("1.2.3")
    ('…3680043.8.498.1', '1.2.3')
    """
    return uid if len(uid) <= length else "…" + uid[-(length - 1) :].lstrip(".")


def date(value: str) -> str:
    """Write a date of DICOM (VR DA) so that it can be read; another text as it is.

    Examples
    --------
    >>> date("20240229"), date("2024")
    ('2024-02-29', '2024')
    """
    whole = len(value) == 8 and value.isdigit()
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if whole else value


def local_time(iso: str) -> str:
    """Return a UTC time in the reader's own; the text itself where it is none."""
    try:
        moment = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError:
        return iso
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def duration(seconds: float | None) -> str:
    """Say how long, roughly.

    Examples
    --------
    >>> duration(42), duration(600), duration(9000), duration(None)
    ('42 s', '10 min', '2 h 30 min', '')
    """
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
