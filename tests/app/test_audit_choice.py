"""What an audit refuses before it measures, and whom it takes where the ledger is intricate."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import memorising_task as task
from audit_home import MODEL, Site, site_in
from segunlearn import cli
from segunlearn.app import checkpoints, watched_run
from segunlearn.app.audit_choice import Choice, choose, divide, settings_of
from segunlearn.app.audit_files import Audits
from segunlearn.app.audit_order import Order
from segunlearn.app.audit_run import AuditRun, key_of
from segunlearn.app.audit_studies import sets_of, window
from segunlearn.app.audit_targets import Targets
from segunlearn.app.places import places_of
from segunlearn.cases import Case
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import (
    CancelledError,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LabelError,
    NotFoundError,
    SegUnlearnError,
    StudyNotInLedgerError,
    UnsupportedNetworkError,
)
from segunlearn.networks import ModelConfig
from segunlearn.records.runs import Progress
from segunlearn.training import train
from segunlearn.unlearning import Study
from segunlearn.volumes import read_volume, write_volume

QUICK = Order(MODEL, quick=True, device="cpu", attacks=("artefacts",))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """v0001 was trained on everybody but the unseen, v0002 without those marked; random weights."""
    site = site_in(tmp_path, forget=2, retain=4, unseen=5)
    site.publish(1, [*site.forget, *site.retain])
    site.mark(site.forget)
    site.publish(2, site.retain)
    return site


def chosen(site: Site, cases: list[Case] | None = None, **options: Any) -> Choice:
    return choose(site.records, site.registry, site.cases if cases is None else cases, **options)


def series(cases: tuple[Case, ...]) -> set[str]:
    return {c.series for c in cases}


def know(site: Site, choice: Choice) -> list[str]:
    """Versions that the sweep finds open."""
    places = places_of(site.records, choice.swept)
    return [p.where[-5:] for p in places if (p.kind, p.state) == ("version", "open")]


def test_sets_come_from_the_ledger(site: Site) -> None:
    choice = chosen(site)
    assert series(choice.forget) == {c.series for c in site.forget}
    assert series(choice.retain) == {c.series for c in site.retain}
    assert series(choice.calibration) | series(choice.test) == {c.series for c in site.unseen}
    assert not series(choice.calibration) & series(choice.test)
    assert choice.provenance.exact
    assert choice.provenance.read == {"train": 4}
    assert (choice.needed, len(choice.requests)) == ("unlearned", 2)
    assert know(site, choice) == ["v0001"]
    assert chosen(site) == choice


def test_the_level_is_the_highest_of_the_requests_or_what_is_asked(site: Site) -> None:
    forget_set = site.records.forget_set
    forget_set.mark("patient", site.retain[0].person, "quality", actor="test", needed="retrained")
    (request,) = forget_set.list(target_id=site.retain[0].person)
    targets = Targets(requests=(request.request_id, *[r.request_id for r in chosen(site).requests]))
    assert chosen(site, targets=targets).needed == "retrained"
    assert chosen(site, level="hidden").needed == "hidden"
    named = Targets(patients=(site.forget[0].person,))
    assert chosen(site, targets=named).needed == "unlearned"


def test_a_candidate_with_a_parent_is_not_exact(site: Site) -> None:
    parent = site.registry.get("v0001")
    child = site.publish(3, site.retain, parent=parent, kind="unlearn")
    choice = chosen(site)
    assert (choice.candidate.version, choice.original.version) == (child.version, "v0001")
    assert not choice.provenance.exact
    assert know(site, choice) == ["v0001", child.version]


@pytest.mark.parametrize(("method", "found"), [("retrain", 7), ("fine_tune", None)])
def test_what_was_trained_again_tells_its_settings(
    site: Site, method: str, found: int | None
) -> None:
    """Else the next retraining, and the references of the next audit, are made with defaults."""
    ledger = site.records.ledger
    (row,) = ledger.rows(version=site.registry.get("v0002").sha256)
    row = replace(
        row, kind="unlearn", parent_sha256=None,
        parameters={"method": method, "settings": {"epochs": 7}},
    )  # fmt: skip
    assert settings_of(ledger, row).get("epochs") == found


@pytest.mark.parametrize("discarded", [False, True])
def test_what_no_audit_passed_is_no_original(site: Site, discarded: bool) -> None:
    weights = site.home.scratch() / "candidate.safetensors"
    weights.write_bytes(b"made by unlearning, and in no ledger")
    options: dict[str, Any] = {"parent_sha256": None, "run_id": "f" * 32, "candidate": True}
    made = site.registry.publish(weights, task.CONFIG.to_json(), **options)
    if discarded:
        site.registry.discard(made.version)
    site.publish(4, site.retain)
    choice = chosen(site)
    assert (choice.candidate.version, choice.original.version) == ("v0004", "v0001")


def test_a_candidate_that_used_the_studies_is_not_exact(site: Site) -> None:
    site.publish(3, [*site.retain, site.forget[0]])
    with_one = chosen(site, original="v0001")
    # its own run used one of the two: the default leaves that request out …
    assert series(with_one.forget) == {site.forget[1].series}
    # … and who names it gets a measurement that is not called exact
    named = Targets(patients=tuple(c.person for c in site.forget))
    assert not chosen(site, original="v0001", targets=named).provenance.exact
    site.publish(4, [*site.retain, *site.forget])
    with pytest.raises(StudyNotInLedgerError, match="itself trained on"):
        chosen(site, original="v0001")


def test_a_candidate_that_used_another_study_of_the_person_is_not_exact(site: Site) -> None:
    """The patient was to be forgotten, whatever studies the original happened to see."""
    one = site.forget[0]
    another = replace(one, series="second", study="second")
    site.publish(3, [*site.retain, another])
    left = chosen(site, original="v0001")
    assert series(left.forget) == {site.forget[1].series}
    assert any("were not to be forgotten" in note for note in left.notes) is False
    (request, _) = site.records.forget_set.mark("patient", one.person, "quality", actor="test")
    for named in (Targets(patients=(one.person,)), Targets(requests=(request.request_id,))):
        choice = chosen(site, original="v0001", targets=named)
        assert series(choice.forget) == {one.series}
        assert not choice.provenance.exact
        assert any("itself trained on 1" in note for note in choice.notes)
        assert not any("were not to be forgotten" in note for note in choice.notes)
        assert "v0003" in know(site, choice)
    # who wants this study forgotten, and not the person, is told of the other one
    study = chosen(site, original="v0001", targets=Targets(series=(one.series,)))
    assert study.provenance.exact
    assert any("were not to be forgotten" in note for note in study.notes)


@pytest.mark.parametrize("by", ["request", "patient"])
def test_the_sweep_looks_for_what_other_versions_saw_of_a_patient(site: Site, by: str) -> None:
    """The original saw one study; what another training, or another model, saw was not open."""
    one = site.forget[0]
    seldom, other = (replace(one, series=name, study=name) for name in ("seldom", "elsewhere"))
    site.publish(3, [seldom, *site.retain])
    replace(site, model="other").publish(4, [other])
    (site.home.root / "labels").mkdir()
    (site.home.root / "labels" / "seldom.nii.gz").write_bytes(b"voxels")
    (request,) = (
        r
        for r in chosen(site, original="v0001", candidate="v0002").requests
        if r.target.id == one.person
    )
    targets = Targets(requests=(request.request_id,))
    if by == "patient":
        targets = Targets(patients=(one.person,))
    choice = chosen(site, candidate="v0002", original="v0001", targets=targets)
    assert series(choice.forget) == {one.series}
    places = places_of(site.records, choice.swept)
    found = {p.where for p in places if p.state == "open" and p.kind in ("version", "label")}
    assert found == {
        "models/tiny/versions/v0001", "models/tiny/versions/v0003",
        "models/other/versions/v0001", f"labels/{site.records.pseudonyms.of('seldom')}.nii.gz",
    }  # fmt: skip


@pytest.mark.parametrize("again", [True, False])
def test_a_candidate_that_used_the_image_under_another_name_is_not_exact(
    site: Site, again: bool
) -> None:
    """As a research export has it: the ledger knows the image, and no identifier says so."""
    one, two = site.forget
    copy = replace(site.retain[0], series="exported", study="exported", person="ANON17")
    images = {one.series: "1" * 64, two.series: "2" * 64, copy.series: "1" * 64}
    everybody = [one, two, copy, *site.retain]
    before = site.publish(3, everybody, images=images)
    # a training writes down all digests, an unlearning those of the forgotten
    site.publish(4, [copy, *site.retain], images=images if again else None)
    named = {name: Targets(series=(c.series,)) for name, c in (("one", one), ("two", two))}
    choice = chosen(site, original=before.version, targets=named["one"])
    assert not choice.provenance.exact
    assert any("trained on 1 image(s) that are those to be forgotten" in n for n in choice.notes)
    assert not any("exported" in n for n in choice.notes)
    choice = chosen(site, original=before.version, targets=named["two"])
    assert choice.provenance.exact
    assert not any("those to be forgotten" in n for n in choice.notes)


def test_nothing_is_audited_where_the_candidate_used_the_only_person_again(tmp_path: Path) -> None:
    site = site_in(tmp_path, forget=1, retain=4, unseen=5)
    site.publish(1, [*site.forget, *site.retain])
    site.publish(2, [replace(site.forget[0], series="second", study="second"), *site.retain])
    site.mark(site.forget)
    with pytest.raises(StudyNotInLedgerError, match="itself trained on"):
        chosen(site)


def test_people_of_any_ancestor_are_never_unseen(site: Site) -> None:
    origin = site.publish(3, site.unseen[:1])
    before = site.publish(4, [*site.forget, *site.retain], parent=origin)
    site.publish(5, site.retain, parent=before, kind="unlearn")
    choice = chosen(site)
    assert series(choice.retain) == {c.series for c in [*site.retain, site.unseen[0]]}
    assert site.unseen[0].series not in series(choice.calibration) | series(choice.test)


def test_another_study_of_a_forgotten_person_is_in_no_set(site: Site) -> None:
    one = site.forget[0]
    second = replace(site.unseen[0], series="second", study="second", person=one.person)
    choice = chosen(site, [*site.cases[:-1], second])
    everywhere = [*choice.forget, *choice.retain, *choice.calibration, *choice.test]
    assert "second" not in series(tuple(everywhere))
    # an issuer that only one side knows may be the same person
    issued = replace(second, person=f"{one.person}^^^St. Anna")
    assert "second" not in series(
        tuple(c for c in [*chosen(site, [*site.cases[:-1], issued]).test])
    )


def test_whoever_else_is_marked_is_used_for_nothing(site: Site) -> None:
    site.mark([site.retain[0], site.unseen[0]], approve=False)
    choice = chosen(site)
    everywhere = series((*choice.forget, *choice.retain, *choice.calibration, *choice.test))
    assert not everywhere & {site.retain[0].series, site.unseen[0].series}
    assert any("marked" in note for note in choice.notes)


def _unknown_version(site: Site) -> None:
    chosen(site, candidate="v0099")


def _not_in_ledger(site: Site) -> None:
    site.publish(9, [], row=False)
    chosen(site)


def _never_seen(site: Site) -> None:
    chosen(site, targets=Targets(patients=(site.unseen[0].person,)))


def _no_request(site: Site) -> None:
    for request in site.records.forget_set.list():
        site.records.forget_set.withdraw(request.request_id, actor="test")
    chosen(site)


def _unknown_request(site: Site) -> None:
    chosen(site, targets=Targets(requests=("f" * 32,)))


def _structure(site: Site) -> None:
    request, _ = site.records.forget_set.mark("structure", "lesion", "quality", actor="test")
    chosen(site, targets=Targets(requests=(request.request_id,)))


def _no_earlier_version(site: Site) -> None:
    chosen(site, candidate="v0001")


def _other_people(site: Site) -> None:
    """The forgotten person's name differs from the ledger's: S and T would share a person."""
    chosen(site, [replace(c, person=c.series) for c in site.cases])


def _no_unseen(site: Site) -> None:
    chosen(site, [*site.forget, *site.retain, *site.unseen[:2]])


def _no_retained(site: Site) -> None:
    chosen(site, [*site.forget, *site.unseen])


def _missing_label(site: Site) -> None:
    chosen(site, [replace(site.forget[0], label=None), *site.cases[1:]])


def _missing_image(site: Site) -> None:
    chosen(site, site.cases[1:])


def _other_network(site: Site) -> None:
    config = task.CONFIG.to_json()
    site.publish(9, site.retain, config=ModelConfig.from_json({**config, "spacing": [2.0, 1, 1]}))
    chosen(site)


def _given_twice(site: Site) -> None:
    chosen(site, [*site.cases, site.cases[-1]])


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (_unknown_version, NotFoundError, "no version 'v0099'"),
        (_not_in_ledger, NotFoundError, "not in the ledger"),
        (_never_seen, StudyNotInLedgerError, "the model never saw it"),
        (_no_request, StudyNotInLedgerError, "no approved forget request"),
        (_unknown_request, NotFoundError, "no forget request"),
        (_structure, InvalidInputError, "about a structure"),
        (_no_earlier_version, NotFoundError, "no version before"),
        (_other_people, InvalidInputError, "other persons than the ledger"),
        (_no_unseen, InvalidInputError, "2 labelled people were never seen"),
        (_no_retained, InvalidInputError, "none of the other people"),
        (_missing_label, LabelError, "no labelled image"),
        (_missing_image, LabelError, "no labelled image"),
        (_other_network, UnsupportedNetworkError, "spacing"),
        (_given_twice, InvalidInputError, "given twice"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    site: Site, ask: Callable[[Site], None], error: type[SegUnlearnError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        ask(site)
    assert "Name-" not in str(caught.value)
    assert not site.records.runs.list(kind="audit")


def test_the_unseen_are_divided_by_a_key_and_not_by_chance() -> None:
    people = [f"p{i}" for i in range(100)]
    calibration, test = divide(people, Pseudonyms(bytes(32)))
    assert (len(calibration), len(test)) == (30, 70)
    assert (calibration, test) == divide(people[::-1], Pseudonyms(bytes(32)))
    assert calibration != divide(people, Pseudonyms(bytes([1]) * 32))[0]
    # a share of one is still one, and one person of two issuers is not torn apart
    assert [len(s) for s in divide(["a", "b"], Pseudonyms(bytes(32)))] == [1, 1]
    both = {"x", "x^^^A"}
    assert any(both <= s for s in divide([*people, *both], Pseudonyms(bytes(32))))


def test_a_window_holds_the_structures() -> None:
    label = torch.zeros(50, 20, 9, dtype=torch.uint8)
    label[30:45, 3:18, 5] = 1
    label[31:33, 4:6, 2] = 1
    image = torch.arange(50 * 20 * 9, dtype=torch.float32).reshape(1, 50, 20, 9)
    cut = window(Study("s", "s", "p", image, label), task.CONFIG)
    assert cut.label.shape == (32, 32, 1)
    assert cut.label.sum() == 225  # the whole structure of the largest slice
    at = torch.nonzero(cut.label)[0]
    assert cut.image[0, at[0], at[1], 0] == image[0, 30, 3, 5]
    empty = window(Study("s", "s", "p", image, torch.zeros_like(label)), task.CONFIG)
    assert empty.image.shape == (1, 32, 32, 1)


def test_a_changed_image_is_noted(site: Site) -> None:
    case = site.forget[0]
    volume = read_volume(case.image)
    version = site.registry.get("v0001")
    row = site.records.ledger.row(version.run_id)
    assert row.version_sha256 == version.sha256
    choice = chosen(site)
    good = {c.series: (read_volume(c.image).digest(), "") for c in site.forget}
    pseudonyms = site.records.pseudonyms
    _, notes = sets_of(replace(choice, changed=good), pseudonyms)
    assert not any("was changed" in note for note in notes)
    write_volume(replace(volume, array=volume.array + 1), case.image)
    _, notes = sets_of(replace(choice, changed=good), pseudonyms)
    assert any("1 forgotten series was changed" in note for note in notes)


def test_changed_weights_are_refused(site: Site) -> None:
    weights = site.registry.get("v0001").weights
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    run = AuditRun(QUICK, site.home, site.records)
    run.prepare(site.cases)
    with pytest.raises(IntegrityError, match="SHA-256"):
        run.execute()
    assert site.records.runs.get(run.run_id).state == "failed"
    weights.unlink()
    with pytest.raises(NotFoundError, match="not here any more"):
        run.execute()


def test_a_stopped_audit_with_references_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def counted(*a: Any, **k: Any) -> Any:
        trained.append(k["run_dir"].name)
        return train(*a, **k)

    monkeypatch.setattr("segunlearn.app.audit_references.train", counted)
    monkeypatch.setattr(watched_run, "WATCH_SECONDS", 0.0)
    order = replace(QUICK, references=2)
    run = AuditRun(order, site.home, site.records)
    run.prepare(site.cases)
    # an hour for six cases: two references on four of them
    assert run.reference_seconds() == pytest.approx(2 * 3600 * 4 / 6)

    def stop(progress: Progress) -> None:
        if progress.phase.startswith("full reference 2"):
            site.records.runs.cancel(run.run_id)

    run.on_progress = stop
    with pytest.raises(CancelledError):
        run.execute()
    assert site.records.runs.get(run.run_id).state == "cancelled"
    assert Audits(site.home).ids() == []
    assert trained == ["full-1", "full-2"]
    again = AuditRun(order, site.home, site.records)
    again.prepare(site.cases)
    result = again.execute()
    assert trained == ["full-1", "full-2", "full-2"]
    assert result["verdict"]["reference"] == "full"
    assert result["cost"]["references"]["full"] > 0
    work = Audits(site.home).work(key_of(again.choice, site.records.pseudonyms))
    kept = {p.name for p in work.iterdir() if p.suffix != ".json"}
    assert kept == {"full-1.safetensors", "full-2.safetensors"}  # and no checkpoint
    states = {p["where"]: p["state"] for p in result["places"] if "full-1" in p["where"]}
    assert set(states.values()) == {"replaced"}
    assert Audits(site.home).ids() == [again.run_id]


def test_references_go_that_saw_who_is_marked_meanwhile(site: Site) -> None:
    run = AuditRun(QUICK, site.home, site.records)
    choice = run.prepare(site.cases)
    work = Audits(site.home).work(key_of(choice, site.records.pseudonyms))

    def mark(progress: Progress) -> None:
        if work.is_dir():
            site.mark(site.retain[:1], approve=False)

    run.on_progress = mark
    run.execute()
    assert not work.is_dir()


def test_a_next_audit_does_not_keep_references_that_saw_who_is_marked(site: Site) -> None:
    """The first was killed; the next one reads fewer people, and its list would hide them."""
    run = AuditRun(QUICK, site.home, site.records)
    choice = run.prepare(site.cases)
    work = Audits(site.home).work(key_of(choice, site.records.pseudonyms))
    (work / "full-1").mkdir(parents=True)
    checkpoints.note(work, choice.retain, site.records.pseudonyms)
    left = work / "full-1" / "state-000001.safetensors"
    left.write_bytes(b"saw them all")
    run.execute()
    assert left.is_file()  # nobody is marked: it is used by the next audit
    site.mark(site.retain[:1])
    (work / "full-1").mkdir(parents=True)
    left.write_bytes(b"saw them all")
    checkpoints.note(work, choice.retain, site.records.pseudonyms)
    again = AuditRun(QUICK, site.home, site.records)
    again.prepare(site.cases)
    again.execute()
    assert (work / "cases.json").is_file()
    assert not left.exists()


def test_two_equal_audits_do_not_run_at_once(site: Site) -> None:
    run = AuditRun(QUICK, site.home, site.records)
    run.prepare(site.cases)
    refused: list[str] = []

    def second(_: Progress) -> None:
        other = AuditRun(QUICK, site.home, site.records)
        other.prepare(site.cases)
        if not refused:
            with pytest.raises(ConflictError) as caught:
                other.execute()
            refused.append(str(caught.value))

    run.on_progress = second
    run.execute()
    assert "runs already" in refused[0]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], site: Site
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        own = ["run", *words, "--home", site.home.root, "--model", MODEL, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["segunlearn", "audit", *map(str, own)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


PEOPLE = ("--person-regex", r"^(Name-\d+)_")


def test_the_command_audits_a_folder(
    command: Callable[..., tuple[int, str, str]], site: Site, tmp_path: Path
) -> None:
    words = ("--data", tmp_path / "data", *PEOPLE, "--quick", "--attacks", "artefacts")
    code, out, err = command(*words, "--json")
    result = json.loads(out)
    assert code == (0 if result["verdict"]["outcome"] == "passed" else 3)
    assert result["about"]["requests"] == [r.request_id for r in chosen(site).requests]
    audit_id = result["about"]["audit_id"]
    assert (site.home.audits / audit_id / "report.html").is_file()
    code, out, err = command(*words, "--include-images", "--with-reference", "--references", "1")
    assert "verdict:" in out
    assert "about 40 min" in err
    newest = Audits(site.home).ids()[0]
    assert newest != audit_id
    # pictures were asked for by the owner: the report is larger by pixels, and names nobody
    page = (site.home.audits / newest / "report.html").read_text()
    assert page.count("<svg") > (site.home.audits / audit_id / "report.html").read_text().count(
        "<svg"
    )
    assert "Name-" not in page


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "either --data or --studies"),
        (("--data", "DATA", "--studies", "x"), "either --data or --studies"),
        (("--data", "DATA"), "other persons than the ledger"),
        (("--data", "DATA", *PEOPLE, "--attacks", "hypnosis"), "no attack hypnosis"),
        (("--data", "DATA", *PEOPLE, "--references", "3"), "only trained with --with-reference"),
        (("--data", "DATA", *PEOPLE, "--candidate", "v0009"), "no version"),
        (("--data", "DATA", *PEOPLE, "--patient", "Name-0200"), "never saw it"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    words: tuple[str, ...],
    why: str,
) -> None:
    code, out, err = command(*(w.replace("DATA", str(tmp_path / "data")) for w in words))
    assert (code, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1


def test_the_studies_of_a_server_are_a_source_too(
    command: Callable[..., tuple[int, str, str]], site: Site, tmp_path: Path
) -> None:
    code, out, err = command(
        "--studies", tmp_path / "data", *PEOPLE, "--quick", "--attacks", "artefacts", "--json"
    )
    assert code in (0, 3), err
    assert json.loads(out)["sets"]["forget"]["studies"] == 2
