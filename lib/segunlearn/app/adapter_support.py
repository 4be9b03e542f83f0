"""What a site is adapted to: its key, and the labelled studies that are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from segunlearn.adaptation import AdaptSettings
from segunlearn.adaptation.adapt import READS
from segunlearn.app.from_active import held_out_numbers
from segunlearn.app.records import Records
from segunlearn.app.site_choice import AUTO, BASE, Aliases
from segunlearn.cases import Case, number_of
from segunlearn.dicom.site import Rule, SiteKey
from segunlearn.errors import ConflictError, InvalidInputError, LabelError
from segunlearn.records.version_info import VersionInfo

#: How wide an adapter's key is; ``name``: no header tells, a person named the site.
Width = Literal["scanner", "institution", "model", "name"]
WIDTHS: Final = ("scanner", "institution", "model")

#: A method of an order: what meta-training left and plain fine-tuning, whichever does better on the
#: people that are held out.
BEST: Final = "best"
#: Fine-tuning that is tried beside it: between the rates that were best on the sites that
#: ``tests/benchmarks/adaptation_fundus.py`` tunes on, 1e-3 and 1e-2.
_BESIDE: Final = {"method": "fine_tune", "inner_set": "all", "learning_rate": 3e-3}

#: What an order takes of a setting that not every method reads, where nobody chose it. Stock
#: clients send it along, so it is no choice.
DEFAULTS: Final[Mapping[str, Any]] = {"steps": 5, "inner_set": "decoder", "learning_rate": None}
_OPTIONS: Final = {
    "steps": "--steps (adapt_steps)",
    "inner_set": "--inner-set (inner_set)",
    "learning_rate": "--rate (adapt_rate)",
}

#: What is known of a case's scanner.
HeaderOf = Callable[[Case], SiteKey | None]


@dataclass(frozen=True)
class AdaptOrder:
    """What is asked of an adaptation.

    Parameters
    ----------
    model
        Name in the registry.
    site
        Name or key of the site; ``auto``: that of the support.
    support
        Ids of series or studies; none: the labelled studies of the site.
    most
        At most so many studies, where none are named; one of each person first.
    width
        How wide the key shall be; empty: the narrowest that all of the support share.
    method
        See ``AdaptSettings``; empty: what meta-training left, else ``fine_tune``. ``BEST``: this,
        and fine-tuning of all weights.
    settings
        Other fields of ``AdaptSettings``.
    confirm_one
        Adopt an adapter of one person's studies, though nothing can be held out.
    device
        ``auto``, ``cpu``, ``cuda:0``.
    """

    model: str
    site: str = AUTO
    support: tuple[str, ...] = ()
    most: int = 5
    width: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    confirm_one: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InvalidInputError(f"at most {self.most} studies: take at least one.")
        if self.width not in ("", *WIDTHS, "name"):
            raise InvalidInputError(f"width {self.width!r:.40}: use one of {', '.join(WIDTHS)}.")
        if self.site == BASE:
            raise InvalidInputError(f"{BASE!r} is the model itself and no site; name another one.")

    def settings_for(self, methods: Sequence[str]) -> tuple[AdaptSettings, ...]:
        """Return the settings that are tried; a method not named is the first that is there.

        Parameters
        ----------
        methods
            Of the meta model, empty without one.
        """
        first = next(iter(methods), "fine_tune")
        method = first if self.method in ("", BEST) else self.method
        tried = [{**self.settings, "method": method}]
        if self.method == BEST:
            tried.append({**self.settings, **_BESIDE})
        return tuple(AdaptSettings(**settings) for settings in tried)

    def refuse_unread(self, tried: Sequence[AdaptSettings]) -> None:
        """Refuse a setting that was chosen, and that nothing which is tried reads.

        Raises
        ------
        InvalidInputError
            There is one: it would stand in the records, and have changed nothing.
        """
        chosen = {k: v for k, v in self.settings.items() if v != DEFAULTS.get(k, v)}
        for name, value in chosen.items():
            if not any(name in READS[s.method] and getattr(s, name) == value for s in tried):
                raise InvalidInputError(
                    f"{_OPTIONS[name]}: {methods_of(tried)} does not read it. Leave it out, or "
                    "choose another method; fine_tune reads it."
                )

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the studies' ids."""
        found = {k: v for k, v in asdict(self).items() if k != "support"}
        return {**found, "settings": dict(self.settings), "named": len(self.support)}


def methods_of(tried: Sequence[AdaptSettings]) -> str:
    """Name the methods that are tried: ``generator+maml or fine_tune of all``."""
    if len(tried) == 1:
        return tried[0].method
    return " or ".join(named(settings) for settings in tried)


def named(settings: AdaptSettings) -> str:
    """Name one of several methods: of two fine-tunings it is known which weights they change."""
    plain = settings.method == "fine_tune"
    return f"{settings.method} of {settings.inner_set}" if plain else settings.method


@dataclass(frozen=True)
class Support:
    """The studies that a site is adapted to.

    Parameters
    ----------
    site
        Key of the site as text.
    width
        How much of their headers it holds.
    cases
        Labelled, none of them marked for forgetting.
    marked, others
        Labelled studies of the site that are left out: marked, or more than are taken.
    """

    site: str
    width: Width
    cases: tuple[Case, ...]
    marked: int
    others: int

    @property
    def people(self) -> int:
        """Number of persons."""
        return len({number_of(c.person) for c in self.cases})


def choose_support(
    order: AdaptOrder,
    cases: Sequence[Case],
    header_of: HeaderOf,
    records: Records,
    info: VersionInfo,
    aliases: Aliases,
) -> Support:
    """Choose site and studies; nothing is read or changed.

    Parameters
    ----------
    order
        What is asked for.
    cases
        Every labelled case at hand, also those marked for forgetting.
    header_of
        Tells the scanner of a case; asked only where it matters.
    records, info, aliases
        Of the installation; the version that is served.

    Raises
    ------
    InvalidInputError
        The name is none of a site; the studies are of several sites or modalities; no site is
        named where no header tells one; a person was kept out of the model to judge it; or one
        person's studies are all and this was not confirmed.
    LabelError
        A named study has no finished label, or there is none of the site.
    ConflictError
        A named study is marked for forgetting.
    """
    wanted = _named(order, cases) if order.support else list(cases)
    kept = {c.series for c in records.without_forgotten(wanted)}
    if order.support and len(kept) < len(wanted):
        raise ConflictError(
            f"{len(wanted) - len(kept)} of the named studies are marked for forgetting; no adapter "
            "learns from them. Leave them out, or withdraw the mark."
        )
    keys = {c.series: aliases.of(header_of(c) or SiteKey()) for c in wanted}
    asked = aliases.site(order.site) if order.site not in ("", AUTO) else None
    if asked == SiteKey():
        raise InvalidInputError(
            f"site {order.site!r:.200}: this names no site, headers without one say it. Give the "
            "name of the hospital or of its scanner."
        )
    if asked is not None and any(k.rungs() for k in keys.values()):
        mine = [c for c in wanted if keys[c.series].is_of(asked)]
        if order.support and len(mine) < len(wanted):
            raise InvalidInputError(
                f"{len(wanted) - len(mine)} of the named studies are not of site {order.site!r}, "
                "by their headers. Adapt each site to its own studies; spellings are joined in "
                "sites/aliases.json."
            )
        wanted = mine
    usable = [c for c in wanted if c.series in kept]
    if not usable:
        raise LabelError(
            f"site {order.site!r:.200} has no labelled study that may be used "
            f"({len(wanted) - len(usable)} are marked for forgetting). Annotate and submit some."
        )
    taken = usable if order.support else _some(usable, order.most, keys, asked)
    site, width = _key_of(order, [keys[c.series] for c in taken], asked)
    if len({c.modality for c in taken}) > 1:
        raise InvalidInputError(
            "the support mixes modalities "
            f"({', '.join(sorted({c.modality for c in taken}))}): one adapter is of one kind of "
            "image. Name the studies of one."
        )
    _refuse_held_out(taken, records, info)
    support = Support(site, width, tuple(taken), len(wanted) - len(usable),
                      len(usable) - len(taken))  # fmt: skip
    if support.people < 2 and not order.confirm_one:
        raise InvalidInputError(
            f"the support shows one person ({len(taken)} studies), so no person can be held out to "
            "see whether the adapter helps. Annotate a study of another person, or confirm that "
            "one shall do (--confirm-one; confirm_one in a request)."
        )
    return support


def _named(order: AdaptOrder, cases: Sequence[Case]) -> list[Case]:
    found: dict[str, Case] = {}
    for name in order.support:
        mine = [c for c in cases if name in (c.series, c.study)]
        if not mine:
            raise LabelError(
                f"{name!r:.80} is no study with a finished label. Annotate and submit it, or check "
                "its id."
            )
        found |= {c.series: c for c in mine}
    return list(found.values())


def _some(
    cases: Sequence[Case], most: int, keys: Mapping[str, SiteKey], asked: SiteKey | None
) -> list[Case]:
    """One study of each person first, in the order of their ids."""
    if asked is None:
        sites = {str(key.rungs()[0][1]) for c in cases if (key := keys[c.series]).rungs()}
        if len(sites) > 1:
            raise InvalidInputError(
                f"labelled studies of {len(sites)} sites are here: {', '.join(sorted(sites))}. "
                "Name one of them (site)."
            )
    elif not any(k.rungs() for k in keys.values()):
        raise InvalidInputError(
            "the images have no DICOM header that tells their site: name the studies (support)."
        )
    ordered = sorted(cases, key=lambda c: c.series)
    turn: dict[str, int] = {}
    rank = {}
    for case in ordered:
        person = number_of(case.person)
        turn[person] = turn.get(person, 0) + 1
        rank[case.series] = turn[person]
    return sorted(ordered, key=lambda c: (rank[c.series], c.series))[:most]


def _key_of(
    order: AdaptOrder, headers: Sequence[SiteKey], asked: SiteKey | None
) -> tuple[str, Width]:
    """Narrowest key that all headers share, or that of the width that was asked for."""
    rungs = [dict(key.rungs()) for key in headers]
    if not any(rungs) and order.width in WIDTHS:
        raise InvalidInputError(
            f"width {order.width}: no header tells the site of these studies (no DICOM, or "
            "de-identified). Leave the width out, and name the site."
        )
    if not any(rungs) or order.width == "name":
        if asked is None:
            raise InvalidInputError(
                "no header tells the site of these studies (no DICOM, or de-identified): name it "
                "(site). It is then chosen by that name."
            )
        return str(asked), "name"
    wanted: tuple[Rule, ...] = ("scanner", "institution", "model")
    for rule in wanted:
        keys = {str(found[rule]) if rule in found else "" for found in rungs}
        shared = len(keys) == 1 and "" not in keys
        if shared and (order.width == rule or (not order.width and rule != "model")):
            return keys.pop(), rule
    raise InvalidInputError(
        f"the support mixes sites: its {len(headers)} studies share no {order.width or 'scanner'}"
        f"{'' if order.width else ' and no institution'}. Name the studies of one site, or say "
        "width model where one kind of scanner is meant, wherever it stands."
    )


def _refuse_held_out(cases: Sequence[Case], records: Records, info: VersionInfo) -> None:
    people = held_out_numbers(cases, info, records.pseudonyms)
    if people:
        raise InvalidInputError(
            f"{len(people)} people of the support were kept out of {info.version} to judge it: a "
            "person belongs to one set. Take studies of other people."
        )
