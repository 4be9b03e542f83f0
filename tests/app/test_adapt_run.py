"""An adaptation from the support to the adapter in service, and everything that keeps it out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app_sources import put_held_out, put_meta_model
from audit_home import MODEL, Site
from segunlearn.adaptation import AdaptSettings, LeaveOneOut, MetaModel, adapt
from segunlearn.adaptation.generator import Generator, film_layers
from segunlearn.adapters.site import SiteAdapter, Start
from segunlearn.app import adapter_run, watched_run
from segunlearn.app.adapter_run import SITE_ADAPT, AdaptRun
from segunlearn.app.adapter_store import SiteAdapters
from segunlearn.app.adapter_support import AdaptOrder
from segunlearn.audit.sweep import sweep
from segunlearn.cases import Case, unknown_person
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import (
    CancelledError,
    ConflictError,
    GeometryError,
    IntegrityError,
    InvalidInputError,
    LabelError,
    NotFoundError,
    SegUnlearnError,
    UnavailableError,
)
from segunlearn.inference import Segmenter
from segunlearn.networks import ModelConfig, load_weights
from segunlearn.records.durable import read_json
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.runs import Progress
from segunlearn.records.trail import Trail
from segunlearn.records.version_info import META_MODEL
from segunlearn.unlearning.sets import studies_of
from segunlearn.volumes import Volume, read_volume, write_volume
from unlearn_site import copy_of, known_site

SOUTH = SiteKey("south", "siemens", "avanto", "7")
SETTINGS = {"steps": 2, "inner_set": "head", "learning_rate": 1e-3, "seed": 0}
ADOPT, REFUSE = LeaveOneOut((0.8, 0.6), (0.5, 0.5)), LeaveOneOut((0.4, 0.5), (0.5, 0.5))


@dataclass
class Place:
    """A home whose model never saw the unseen people; three of them come from the south."""

    site: Site
    headers: dict[str, SiteKey]

    @property
    def south(self) -> list[Case]:
        return self.site.unseen[:3]

    @property
    def store(self) -> SiteAdapters:
        return SiteAdapters(self.site.home.sites / MODEL)

    @property
    def served(self) -> str:
        info = self.store.current("south||avanto|7")
        return info.version if info else "base"

    def run(self, **order: Any) -> AdaptRun:
        chosen = {"settings": SETTINGS, "method": "fine_tune", "device": "cpu", **order}
        return AdaptRun(AdaptOrder(MODEL, **chosen), self.site.home, self.site.records, "test")

    def header_of(self, case: Case) -> SiteKey | None:
        return self.headers.get(case.series)

    def adapt(self, cases: Sequence[Case] | None = None, **order: Any) -> dict[str, Any]:
        cases = self.site.unseen if cases is None else cases
        return self.run(**{"site": "south", **order}).execute(cases, self.header_of)

    def nothing_published(self) -> bool:
        return self.store.all() == [] and not list(self.site.home.root.rglob("*.part"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return known_site(tmp_path_factory.mktemp("adapt"), unseen=6)


@pytest.fixture
def place(built: Site, tmp_path: Path) -> Place:
    site = copy_of(built, tmp_path)
    site = replace(site, unseen=list(site.unseen))  # tests change their own list
    north = replace(SOUTH, institution="north")
    headers = {c.series: SOUTH if i < 3 else north for i, c in enumerate(site.unseen)}
    return Place(site, headers)


@pytest.fixture
def adopted(monkeypatch: pytest.MonkeyPatch) -> Callable[[LeaveOneOut], None]:
    """Say what was measured by leaving one out; the adaptation itself is a real one."""

    def say(found: LeaveOneOut) -> None:
        monkeypatch.setattr(adapter_run, "leave_one_out", lambda *_: found)

    say(ADOPT)
    return say


def test_no_site_is_adapted_from_what_only_hides_a_study(place: Place) -> None:
    """An adapter's masks are served, and a few steps may show again what was hidden."""
    forget_set = place.site.records.forget_set
    person = place.site.forget[0].person
    request, _ = forget_set.mark("patient", person, "wrong_label", actor="test")
    place.run(site="south").prepare(place.site.unseen, place.header_of)  # marked: as before
    for state in ("approved", "working"):
        forget_set.transition(request.request_id, state, actor="test")
    forget_set.transition(request.request_id, "fulfilled", actor="test", reached="hidden")
    with pytest.raises(ConflictError, match=f"{request.request_id}.*from random weights"):
        place.adapt()
    assert place.nothing_published()


def test_from_the_support_to_the_adapter_in_service(place: Place) -> None:
    """Nothing is replaced here: base, studies, gate and adapter are real ones."""
    weights = place.site.registry.active().weights
    before = weights.read_bytes()
    settings = {**SETTINGS, "steps": 12, "inner_set": "all", "learning_rate": 1e-2}
    seen: list[Progress] = []
    run = place.run(site="south", settings=settings)
    run.on_progress = seen.append
    result = run.execute(place.site.unseen, place.header_of)
    assert result["outcome"] == "adopted", result["why"]
    assert (result["site"], result["width"]) == ("south||avanto|7", "scanner")
    assert (result["studies"], result["people"]) == (3, 3)
    held_out = result["leave_one_out"]
    assert held_out["adapted"] >= held_out["base"]
    assert result["curve"][-1][1] < result["curve"][0][1]
    assert {p.phase for p in seen} == {"read", "leave one out", "adapt", "publish"}
    info = place.store.current("south||avanto|7")
    assert info is not None
    assert (info.name, info.base) == (result["adapter"], place.site.registry.active().sha256)
    pseudonyms = place.site.records.pseudonyms
    assert info.about["support"] == sorted(pseudonyms.of(c.study) for c in place.south)
    assert info.about["leave_one_out"] == held_out
    assert "Name-" not in (info.path / "about.json").read_text()
    assert "Name-" not in info.file.read_bytes().decode("latin-1")
    assert weights.read_bytes() == before
    row = place.site.records.ledger.row(result["run_id"])
    assert (row.kind, row.version_sha256, row.parent_sha256) == (SITE_ADAPT, info.sha256, info.base)
    cases = place.site.records.ledger.cases_of(result["run_id"])
    assert {(c.series, c.role) for c in cases} == {(c.series, "support") for c in place.south}
    assert place.site.records.ledger.verify() == []
    assert place.site.records.runs.get(result["run_id"]).state == "done"
    (step,) = place.site.records.trail.every()
    assert (step.action, step.kind) == ("publish", "adapter")
    assert result["adapter"].startswith(step.what)
    assert result["run_id"] in step.note


def test_an_adapter_that_harms_is_not_kept_and_the_reason_is_told(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    adopted(REFUSE)
    result = place.adapt()
    assert (result["outcome"], result["adapter"]) == ("base kept", None)
    assert "0.450 with the adapter and 0.500 with the base" in result["why"]
    assert place.nothing_published()
    run = place.site.records.runs.get(result["run_id"])
    assert run.state == "refused"
    assert "the base stays" in run.message
    row = place.site.records.ledger.row(result["run_id"])
    assert (row.outcome, row.version_sha256, row.cases_count) == ("refused", None, 3)


def test_the_best_of_two_ways_serves_and_the_first_where_they_are_equal(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"head": 0.5, "all": 0.6}
    monkeypatch.setattr(
        adapter_run, "leave_one_out",
        lambda *given: LeaveOneOut((found[given[4].inner_set],), (0.45,)),
    )  # fmt: skip
    result = place.adapt(method="best")
    assert (result["outcome"], result["method"]) == ("adopted", "fine_tune")
    assert "0.600 with the adapter" in result["why"]
    assert "tried: fine_tune of head 0.500, fine_tune of all 0.600" in result["why"]
    (adapter,) = place.store.all()
    about = adapter.about
    assert (about["inner_set"], about["learning_rate"]) == ("all", 3e-3)
    assert (about["method"], about["leave_one_out"]["adapted"]) == ("fine_tune", 0.6)
    found["head"] = 0.6
    place.adapt(method="best")
    assert place.store.current(adapter.site).about["inner_set"] == "head"
    found |= {"head": 0.3, "all": 0.4}
    result = place.adapt(method="best")
    assert result["outcome"] == "base kept"
    assert "0.400 with the adapter and 0.450 with the base" in result["why"]


def test_one_person_gets_the_first_way_as_nobody_can_tell_which_is_better(place: Place) -> None:
    support = (place.south[0].series,)
    result = place.adapt(method="best", support=support, confirm_one=True)
    assert result["outcome"] == "adopted"
    (adapter,) = place.store.all()
    assert adapter.about["inner_set"] == "head"


# -- bad input: each time a clear error, and nothing is published --------------------------------

Change = Callable[[Place], dict[str, Any]]


def one_study(place: Place) -> dict[str, Any]:
    return {"support": (place.south[0].series,)}


def two_of_one_person(place: Place) -> dict[str, Any]:
    first, second = place.south[:2]
    place.site.unseen[1] = replace(second, person=first.person)
    return {"support": (first.series, second.series)}


def one_person_with_and_without_issuer(place: Place) -> dict[str, Any]:
    """An archive names the issuer of some of a patient's studies, and of others it does not."""
    first, second = place.south[:2]
    place.site.unseen[1] = replace(second, person=f"{first.person}^^^St. Anna")
    return {"support": (first.series, second.series)}


def nobody_labelled(place: Place) -> dict[str, Any]:
    return {"support": ("1.2.3.not-labelled",)}


def another_site(place: Place) -> dict[str, Any]:
    return {"support": tuple(c.series for c in place.site.unseen[2:4])}


def several_sites(place: Place) -> dict[str, Any]:
    return {"site": "auto"}


def mixed_sites(place: Place) -> dict[str, Any]:
    return {"site": "auto", "support": tuple(c.series for c in place.site.unseen[2:4])}


def mixed_modalities(place: Place) -> dict[str, Any]:
    place.site.unseen[0] = replace(place.south[0], modality="CT")
    return {}


def no_header(place: Place) -> dict[str, Any]:
    place.headers.clear()
    return {}


def no_header_and_no_name(place: Place) -> dict[str, Any]:
    place.headers.clear()
    return {"site": "auto", "support": tuple(c.series for c in place.south)}


def unknown_labels(place: Place) -> dict[str, Any]:
    return rewritten(place, lambda label: label + 7)


def empty_labels(place: Place) -> dict[str, Any]:
    for case in place.south:
        rewrite(place, case, lambda label: label * 0)
    return {}


def rewritten(place: Place, change: Callable[[Any], Any]) -> dict[str, Any]:
    rewrite(place, place.south[0], change)
    return {}


def rewrite(place: Place, case: Case, change: Callable[[Any], Any]) -> None:
    """A label file of this test's own."""
    assert case.label is not None
    label = read_volume(case.label, label=True)
    path = place.site.home.root.parent / "labels" / case.label.name
    write_volume(Volume(change(label.array).astype(np.uint8), label.affine), path)
    number = place.site.unseen.index(case)
    place.site.unseen[number] = replace(case, label=path)


def held_out_people(place: Place) -> dict[str, Any]:
    active = place.site.registry.active()
    put_held_out(active, place.site.home.root, place.south[1].person)
    return {}


def held_out_people_with_their_issuer(place: Place) -> dict[str, Any]:
    held_out_people(place)
    place.site.unseen[1] = replace(place.south[1], person=f"{place.south[1].person}^^^St. Anna")
    return {}


def held_out_people_of_another_key(place: Place) -> dict[str, Any]:
    other = place.site.home.root.parent / "another home"
    put_held_out(place.site.registry.active(), other, place.south[1].person)
    return {}


def held_out_people_of_an_older_manifest(place: Place) -> dict[str, Any]:
    manifest = place.site.registry.active().path / "manifest.json"
    details = {"held_out": [place.south[1].person]}
    manifest.write_text(json.dumps({**read_json(manifest), "details": details}))
    return {}


def another_grid(place: Place) -> dict[str, Any]:
    return rewritten(place, lambda label: label[:-1])


def a_width_that_no_header_tells(place: Place) -> dict[str, Any]:
    place.headers.clear()
    return {"support": tuple(c.series for c in place.south), "width": "scanner"}


def marked_study(place: Place) -> dict[str, Any]:
    place.site.mark([place.south[0]], approve=False)
    return {"support": tuple(c.series for c in place.south)}


def all_marked(place: Place) -> dict[str, Any]:
    place.site.mark(place.south, approve=False)
    return {}


def no_site_by_its_name(place: Place) -> dict[str, Any]:
    return {"site": "Anonymized"}


def no_meta_model(place: Place) -> dict[str, Any]:
    return {"method": "maml"}


BAD: list[tuple[Change, type[SegUnlearnError], str]] = [
    (one_study, InvalidInputError, r"one person \(1 studies\).*confirm"),
    (two_of_one_person, InvalidInputError, r"one person \(2 studies\)"),
    (one_person_with_and_without_issuer, InvalidInputError, r"one person \(2 studies\)"),
    (nobody_labelled, LabelError, "no study with a finished label"),
    (another_site, InvalidInputError, "1 of the named studies are not of site"),
    (several_sites, InvalidInputError, r"of 2 sites .*north\|\|avanto\|7, south"),
    (mixed_sites, InvalidInputError, "mixes sites"),
    (mixed_modalities, InvalidInputError, r"mixes modalities \(CT, MR\)"),
    (no_header, InvalidInputError, "no DICOM header.*name the studies"),
    (no_header_and_no_name, InvalidInputError, "no header tells the site"),
    (unknown_labels, LabelError, "holds values from 7 to 8, the model knows 0 to 1"),
    (empty_labels, LabelError, "nothing to adapt to"),
    (another_grid, GeometryError, r"^support, study \d of 3: .*do not lie on the same voxel grid"),
    (a_width_that_no_header_tells, InvalidInputError, "width scanner: no header tells"),
    (held_out_people, InvalidInputError, "1 people of the support were kept out"),
    (held_out_people_with_their_issuer, InvalidInputError, "1 people of the support were kept"),
    (held_out_people_of_another_key, IntegrityError, "site.key"),
    (held_out_people_of_an_older_manifest, InvalidInputError, "1 people of the support were kept"),
    (marked_study, ConflictError, "1 of the named studies are marked"),
    (all_marked, LabelError, "3 are marked"),
    (no_site_by_its_name, InvalidInputError, "names no site"),
    (no_meta_model, NotFoundError, "meta"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=[c.__name__ for c, _, _ in BAD])
def test_bad_input_is_an_error_and_publishes_nothing(
    place: Place, change: Change, error: type[SegUnlearnError], words: str
) -> None:
    order = change(place)
    with pytest.raises(error, match=words):
        place.adapt(**order)
    assert place.nothing_published()
    run = place.site.records.runs.latest(kind=SITE_ADAPT)
    assert run is None or run.state == "failed"
    assert place.site.records.ledger.verify() == []


def test_the_study_at_fault_is_named_to_whom_asks_and_not_in_the_records(place: Place) -> None:
    """A file's name may be a patient's: it goes beside the message, which is stored and logged."""
    another_grid(place)
    with pytest.raises(GeometryError) as refused:
        place.adapt()
    name = place.south[0].image.name
    assert refused.value.about == name
    run = place.site.records.runs.latest(kind=SITE_ADAPT)
    assert run is not None
    assert "study 1 of 3" in run.message
    assert place.south[0].series not in run.message


def test_a_meta_model_that_was_changed_or_is_of_another_base_is_refused(place: Place) -> None:
    mine = MetaModel(place.site.registry.active().sha256, rates={"x": torch.ones(1)}).to_bytes()
    other = MetaModel("f" * 64, rates={"x": torch.ones(1)}).to_bytes()
    for data, recorded, words in (
        (b"nonsense", b"nonsense", "no valid meta model"),
        (mine[:-1] + bytes([mine[-1] ^ 1]), mine, "changed after it was published"),
        (other, other, "made for weights"),
    ):
        put_meta_model(place.site.registry.active(), data, recorded)
        with pytest.raises(IntegrityError, match=words):
            place.adapt()
    assert place.nothing_published()


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("maml", ("final_conv",)),
        ("generator", ("adn.N",)),
        ("generator+maml", ("adn.N", "final_conv")),
    ],
)
def test_an_adapter_holds_what_its_steps_changed_and_not_the_meta_model(
    place: Place, adopted: Callable[[LeaveOneOut], None], method: str, own: tuple[str, ...]
) -> None:
    """And base, meta model and adapter together are the network that was adapted, to the bit."""
    info = place.site.registry.active()
    config = ModelConfig.from_json(info.config)
    network = load_weights(info.weights, config, info.sha256)
    away = {n: p.detach() * 1.01 + 0.001 for n, p in network.named_parameters()}
    rates = {n: torch.full((1,), 0.01) for n in away if n.startswith("final_conv")}
    generator = Generator(config, film_layers(network)).state_dict()
    for values in generator.values():
        values += 0.01  # else it gives the network as it is
    meta = MetaModel(info.sha256, "head", away, rates, away, generator, rates)
    put_meta_model(info, meta.to_bytes())
    info = place.site.registry.active()

    chosen = {"seed": 0} if method == "generator" else {"seed": 0, "steps": 2}
    result = place.adapt(method=method, settings=chosen)

    found = place.store.current(result["site"])
    assert found is not None
    assert (found.about["inner_set"], found.about["learning_rate"]) == (None, None)
    assert found.about["steps"] == chosen.get("steps", 0)
    kept = found.load()
    assert kept.tensors.keys() == {n for n in away if any(part in n for part in own)}
    assert kept.start == Start("initial" if method == "maml" else "film_network", info.meta_sha256)
    whole = SiteAdapter(info.sha256, {**away, **kept.tensors}, found.about)
    assert found.file.stat().st_size < len(whole.content) / 2
    support = studies_of(sorted(place.south, key=lambda c: c.series), config)
    wanted = adapt(network, meta, support, config, AdaptSettings(method=method, **SETTINGS))
    base = Segmenter(network, config, "cpu")
    served = dict(found.segmenter(base, info).network.named_parameters())
    for name, value in wanted.network.named_parameters():
        assert torch.equal(served[name], value), name
    put_meta_model(info, replace(meta, about={"made": "again"}).to_bytes())
    with pytest.raises(IntegrityError, match="is not beside the weights"):
        found.segmenter(base, place.site.registry.active())
    (info.path / META_MODEL).unlink()
    with pytest.raises(IntegrityError, match="is not beside the weights"):
        found.segmenter(base, info)


@pytest.mark.parametrize(
    ("method", "setting", "value", "words"),
    [
        ("maml", "inner_set", "head", "--inner-set .inner_set.: maml does not read it"),
        ("best", "learning_rate", 0.01, "--rate .adapt_rate.: maml or fine_tune of all does not"),
        ("generator", "steps", 1, "--steps .adapt_steps.: generator does not read it"),
        ("generator+steps", "inner_set", "all", "--inner-set"),
    ],
)
def test_a_setting_that_the_method_does_not_read_is_refused(
    place: Place, method: str, setting: str, value: Any, words: str
) -> None:
    """Else the order and its row in the ledger would tell of what never was."""
    info = place.site.registry.active()
    rates, empty = {"final_conv.weight": torch.ones(1)}, {"x": torch.ones(1)}
    put_meta_model(info, MetaModel(info.sha256, "head", empty, rates, empty, empty).to_bytes())
    with pytest.raises(InvalidInputError, match=words):
        place.adapt(method=method, settings={setting: value})
    defaults = {"steps": 5, "inner_set": "decoder", "learning_rate": None}  # chosen by nobody
    place.run(site="south", method=method, settings=defaults).prepare(
        place.site.unseen, place.header_of
    )
    assert place.nothing_published()


def test_two_studies_of_a_person_are_held_out_together(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only one of them names the issuer of the person's number."""
    first, second, third = place.south
    place.site.unseen[1] = replace(second, person=f"{first.person}^^^St. Anna")
    seen: list[list[str]] = []

    def look(_network: Any, _meta: Any, studies: Sequence[Any], *_: Any) -> LeaveOneOut:
        seen.append([s.person for s in studies])
        return ADOPT

    monkeypatch.setattr(adapter_run, "leave_one_out", look)
    result = place.adapt()
    assert sorted(seen[0]) == sorted([first.person, first.person, third.person])
    assert (result["people"], result["studies"]) == (2, 3)
    cases = place.site.records.ledger.cases_of(result["run_id"])
    assert f"{first.person}^^^St. Anna" in {c.person for c in cases}, "the ledger keeps the issuer"


# -- what is chosen ------------------------------------------------------------------------------


def test_one_person_is_enough_only_when_it_is_confirmed(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    result = place.adapt(support=(place.south[0].series,), confirm_one=True)
    assert (result["outcome"], result["leave_one_out"]) == ("adopted", None)
    assert "confirmation" in result["why"]


def test_studies_without_a_person_may_be_of_one_and_that_is_told(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    nobody = [replace(c, person=unknown_person(c.study)) for c in place.south]
    why = place.adapt(nobody)["why"]
    assert why.endswith("; 3 studies have no PatientID, each counts as another person")
    assert "PatientID" not in place.adapt([nobody[0], *place.south[1:]])["why"]


def test_one_study_of_each_person_first_and_marked_ones_never(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    with_issuer = f"{place.south[0].person}^^^St. Anna"
    again = Case(**{**vars(place.south[0]), "series": "Name-0200_2", "person": with_issuer})
    place.headers[again.series] = SOUTH
    place.site.mark([place.south[1]], approve=False)
    cases = [again, *place.site.unseen]
    _, support, _ = place.run(site="south", most=2).prepare(cases, place.header_of)
    assert [c.series for c in support.cases] == ["Name-0200_1", "Name-0202_1"]
    assert (support.marked, support.others) == (1, 1)


@pytest.mark.parametrize(
    ("stations", "width", "site", "found"),
    [
        (("7", "7"), "", "south||avanto|7", "scanner"),
        (("7", "8"), "", "south||avanto|", "institution"),
        (("7", "7"), "institution", "south||avanto|", "institution"),
        (("7", "8"), "model", "|siemens|avanto|", "model"),
    ],
)
def test_the_key_is_the_narrowest_that_all_share(
    place: Place, stations: tuple[str, str], width: str, site: str, found: str
) -> None:
    support = []
    for case, station in zip(place.south, stations, strict=False):
        place.headers[case.series] = replace(SOUTH, station=station)
        support.append(case.series)
    run = place.run(support=tuple(support), width=width)
    _, chosen, _ = run.prepare(place.site.unseen, place.header_of)
    assert (chosen.site, chosen.width) == (site, found)


def test_a_site_goes_on_under_the_key_that_it_was_kept_under(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    """A name that was joined to another one has an adapter to roll back to."""
    first = place.adapt()
    table = json.dumps({"institution": {"south": "St. South"}})
    (place.site.home.sites / "aliases.json").write_text(table)
    again = place.adapt(site="St. South")
    assert (again["site"], again["adapter"]) == (first["site"], first["adapter"][:-1] + "2")


def test_images_without_header_are_a_site_by_name(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    place.headers.clear()
    result = place.adapt(support=tuple(c.series for c in place.south), site="South Wing")
    assert (result["site"], result["width"]) == ("south wing|||", "name")


# -- stopped, marked and killed ------------------------------------------------------------------


def test_a_stop_publishes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, adopted: Callable[[LeaveOneOut], None]
) -> None:
    monkeypatch.setattr(watched_run, "WATCH_SECONDS", 0.0)
    run = place.run(site="south")
    run.on_progress = lambda p: (
        place.site.records.runs.cancel(run.run_id) if p.phase == "adapt" else None
    )
    with pytest.raises(CancelledError):
        run.execute(place.site.unseen, place.header_of)
    assert place.nothing_published()
    assert place.site.records.runs.get(run.run_id).state == "cancelled"
    assert place.site.records.ledger.row(run.run_id).outcome == "cancelled"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_mark_while_it_runs_keeps_the_adapter_out(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    adopted: Callable[[LeaveOneOut], None],
    moment: str,
) -> None:
    real = SiteAdapters.put

    def put(store: SiteAdapters, *given: Any, **named: Any) -> Any:
        info = real(store, *given, **named)
        # as if the mark had been made before: its hook saw no adapter
        monkeypatch.setattr(SiteAdapters, "all", lambda _: [])
        place.site.mark([place.south[0]], approve=False)
        monkeypatch.undo()
        return info

    if moment == "after":
        monkeypatch.setattr(SiteAdapters, "put", put)
    run = place.run(site="south")
    if moment == "before":
        run.on_progress = lambda p: (
            place.site.mark([place.south[0]], approve=False) and None
            if p.phase == "adapt" and p.step == 0
            else None
        )
    with pytest.raises(ConflictError, match="marked for forgetting while"):
        run.execute(place.site.unseen, place.header_of)
    assert place.served == "base"
    assert not [i for i in place.store.all() if i.here]
    assert not list(place.site.home.sites.rglob("*.safetensors"))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_structure_marked_while_it_runs_keeps_the_adapter_out(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    adopted: Callable[[LeaveOneOut], None],
    moment: str,
) -> None:
    (label,) = place.site.registry.active().config["labels"]

    def mark(*_: Any) -> None:
        place.site.records.forget_set.mark("structure", label, "quality", actor="a", model=MODEL)

    real = SiteAdapters.put

    def put(store: SiteAdapters, *given: Any, **named: Any) -> Any:
        info = real(store, *given, **named)
        mark()
        return info

    run = place.run(site="south")
    if moment == "before":
        run.on_progress = lambda p: mark() if (p.phase, p.step) == ("adapt", 0) else None
    else:
        monkeypatch.setattr(SiteAdapters, "put", put)
    with pytest.raises(ConflictError, match=f"{label} was marked for forgetting while the site"):
        run.execute(place.site.unseen, place.header_of)
    assert place.served == "base"
    assert not list(place.site.home.sites.rglob("*.safetensors"))


@pytest.mark.parametrize("why", ["marked", "untaught"])
def test_a_withdrawn_structure_is_not_taught_again(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    adopted: Callable[[LeaveOneOut], None],
    why: str,
) -> None:
    """Nor one that was withdrawn once, and that the weights were never taught since."""
    (label,) = place.site.registry.active().config["labels"]
    if why == "marked":
        place.site.records.forget_set.mark("structure", label, "quality", actor="a", model=MODEL)
    else:
        monkeypatch.setattr(adapter_run, "untaught", lambda *_: frozenset({label}))
    with pytest.raises(LabelError, match="nothing to adapt to"):
        place.adapt()


@pytest.mark.parametrize("end", ["made", "undone"])
def test_a_mark_that_is_half_made_is_waited_for(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    adopted: Callable[[LeaveOneOut], None],
    end: str,
) -> None:
    """It has looked for adapters and found none, and nobody can read it before it is committed."""
    half_made, go_on = threading.Event(), threading.Event()
    real = SiteAdapters.put
    on_change = Trail.on_change

    def pause(trail: Trail, *given: Any) -> None:
        half_made.set()
        assert go_on.wait(30)
        if end == "undone":
            raise UnavailableError("the disk is full.")
        on_change(trail, *given)

    def mark() -> None:
        with suppress(UnavailableError):
            place.site.mark([place.south[0]], approve=False)

    marking = threading.Thread(target=mark)

    def put(store: SiteAdapters, *given: Any, **named: Any) -> Any:
        marking.start()
        assert half_made.wait(30)
        threading.Timer(0.5, go_on.set).start()
        return real(store, *given, **named)

    monkeypatch.setattr(Trail, "on_change", pause)
    monkeypatch.setattr(SiteAdapters, "put", put)
    with nullcontext() if end == "undone" else pytest.raises(ConflictError, match="were marked"):
        place.adapt()
    marking.join()
    assert place.served == ("v0001" if end == "undone" else "base")
    assert len(list(place.site.home.sites.rglob("*.safetensors"))) == (end == "undone")


def test_an_adapter_is_not_kept_when_nobody_can_say_whether_it_may_be(
    place: Place, monkeypatch: pytest.MonkeyPatch, adopted: Callable[[LeaveOneOut], None]
) -> None:
    def unavailable(_: ForgetSet) -> None:
        raise UnavailableError("the store does not answer.")

    monkeypatch.setattr(ForgetSet, "wait_for_marks", unavailable)
    with pytest.raises(UnavailableError):
        place.adapt()
    assert place.served == "base"
    assert not list(place.site.home.sites.rglob("*.safetensors"))


def test_a_method_that_is_not_there_is_told_before_anything_is_read(place: Place) -> None:
    with pytest.raises(NotFoundError, match="was not meta-trained"):
        place.run(site="south", method="maml").prepare(place.site.unseen, place.header_of)


def test_a_training_under_way_is_waited_for(place: Place) -> None:
    from segunlearn.app.locks import training_lock

    run = place.run(site="south")
    run.lock_seconds = 0.1
    with (
        training_lock(place.site.home, MODEL, "test", 1.0),
        pytest.raises(ConflictError, match="another training"),
    ):
        run.execute(place.site.unseen, place.header_of)


# -- forgetting ----------------------------------------------------------------------------------


def test_a_mark_takes_the_adapter_at_once_and_the_one_before_serves(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    first = place.adapt(support=tuple(c.series for c in place.south[:2]))
    second = place.adapt()
    assert place.served == "v0002"
    place.site.mark([place.south[2]], approve=False)
    assert place.served == "v0001"
    taken = place.store.get(second["site"], "v0002")
    assert (taken.state, taken.here, taken.file.exists()) == ("retired", False, False)
    assert "marked for forgetting" in taken.why
    place.site.mark([place.south[0]], approve=False)
    assert place.served == "base"
    assert not list(place.site.home.sites.rglob("*.safetensors"))
    saw = place.site.records.ledger.versions_that_saw(study=place.south[0].study)
    named = {place.store.get(r["site"], r["adapter"].split("/")[1]).sha256 for r in (first, second)}
    assert {s.version_sha256 for s in saw if s.direct} == named


@pytest.mark.parametrize("file", ["v0001/about.json", "current", "site.json", "no site.json"])
def test_a_damaged_record_keeps_no_adapter_from_a_mark(
    place: Place, adopted: Callable[[LeaveOneOut], None], file: str
) -> None:
    """Neither that of the damaged site, nor those that are looked at after it."""
    place.adapt()
    info = place.store.current("south||avanto|7")
    note = (info.path / "cases.json").read_text()
    for site in ("a", "b", "c"):
        kept = place.store.put(site, info.load(), run_id="r", note=lambda _: None)
        (kept.path / "cases.json").write_text(note)
    damaged = info.path.parent / file.removeprefix("no ")
    damaged.unlink()
    if not file.startswith("no "):
        damaged.write_text("{")
    place.site.mark([place.south[0]], approve=False)
    assert not list(place.site.home.sites.rglob("*.safetensors"))
    assert [place.store.current(site) for site in ("a", "b", "c")] == [None] * 3


def test_a_damaged_version_keeps_no_adapter_from_a_mark(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    place.adapt()
    damaged = place.site.registry.active().path.with_name("v0002")
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    place.site.mark([place.south[0]], approve=False)
    assert not list(place.site.home.sites.rglob("*.safetensors"))


def test_a_mark_of_somebody_else_changes_nothing(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    place.adapt()
    place.site.mark([place.site.unseen[4]], approve=False)
    assert place.served == "v0001"


def test_the_sweep_finds_an_adapter_that_saw_the_study(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    place.adapt()
    records, home = place.site.records, place.site.home.root

    def states(case: Case) -> list[str]:
        seen = {s.version_sha256 for s in records.ledger.versions_that_saw(study=case.study)}
        found = sweep(home, [case.study, case.person], seen, records.pseudonyms)
        return [p.state for p in found if p.kind == "site adapter"]

    assert states(place.south[0]) == ["open"]
    assert states(place.site.retain[0]) == ["open"]  # its base knows them
    assert states(place.site.unseen[4]) == ["absent"]
    place.site.mark([place.south[0]], approve=False)
    assert states(place.south[0]) == ["absent"]


def test_an_adapter_goes_when_its_base_is_sealed(
    place: Place, adopted: Callable[[LeaveOneOut], None]
) -> None:
    """It holds tensors of the base, which would be open beside the sealed ones."""
    place.adapt()
    site = place.site
    old = site.registry.active()
    site.mark([site.forget[0]], approve=False)
    assert place.served == "v0001"  # the mark itself concerns the base alone
    site.publish(2, site.retain)
    site.registry.retire(old.version)
    site.registry.destroy_weights(old.version, sealed=True)
    site.records.drop_marked_checkpoints()
    (info,) = place.store.all()
    assert (info.here, info.state) == (False, "retired")
    assert "sealed" in info.why
