"""A stopped audit goes on, bad input is refused, and the report stands alone."""

from __future__ import annotations

import dataclasses
import html
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import memorising_task as task
from audit_samples import (
    CANDIDATE,
    ORIGINAL,
    PLACES,
    PSEUDONYMS,
    REFERENCE,
    SETS,
    SETTINGS,
    audit,
    told_everything,
)
from segunlearn.audit import measurements
from segunlearn.audit.attestation import attest, create_keys, read_private_key, read_public_key
from segunlearn.audit.attestation import verify as verify_attestation
from segunlearn.audit.notes import advice
from segunlearn.audit.policy import NAMES, Policy, Verdict
from segunlearn.audit.report import html_report, middle_slices, write_report
from segunlearn.audit.report_texts import FAILED
from segunlearn.audit.run import Provenance, read_result
from segunlearn.audit.settings import AuditSettings
from segunlearn.errors import CancelledError, IntegrityError, InvalidInputError
from segunlearn.networks import save_weights
from segunlearn.records.runs import Progress
from segunlearn.unlearning.loop import never, no_report


def test_attacks_see_everybody_before_they_see_somebody_twice(tmp_path: Path) -> None:
    """The first studies of a list may all be of one person."""
    one = dataclasses.replace(SETS.test[0], series="z-1")
    test = (SETS.test[0], *(dataclasses.replace(one, series=f"z-{i}") for i in range(9)))
    sets = dataclasses.replace(SETS, test=(*test, *SETS.test[1:]))
    people = len({s.person for s in SETS.test})
    for most, seen in ((4, 4), (people, people), (people + 2, people)):
        settings = dataclasses.replace(SETTINGS, attacked_unseen=most)
        measured = measurements.Measurements(tmp_path, sets, settings, no_report, never)
        assert len(measured._unseen) == most
        assert len({s.person for s in measured._unseen}) == seen


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("audit")
    audit(folder, provenance=Provenance("salun", False, {"share": 0.5}, 3.0, {"forget": 4}))
    return read_result(folder / "audit.json")


def test_a_stopped_audit_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("score", "relearn", "distil", "recover"):
        real = getattr(measurements, name)

        def counted(*a: Any, name: str = name, real: Callable[..., Any] = real, **k: Any) -> Any:
            calls.append(name)
            return real(*a, **k)

        monkeypatch.setattr(measurements, name, counted)
    seen: list[Progress] = []
    with pytest.raises(CancelledError):
        audit(tmp_path, report=seen.append, cancel=lambda: len(seen) >= 3)
    assert not (tmp_path / "audit.json").exists()
    before = len(calls)
    first = audit(tmp_path, report=seen.append)
    assert len(calls) - before < 3 * 7
    assert seen[-1].step == seen[-1].total == 19
    calls.clear()
    second = audit(tmp_path)
    assert calls == []
    assert second.findings == first.findings
    # other settings and another model: nothing old is used for them
    harder = dataclasses.replace(SETTINGS.recovery, steps=2)
    audit(tmp_path, settings=dataclasses.replace(SETTINGS, recovery=harder))
    assert calls == ["recover"] * 3
    calls.clear()
    audit(tmp_path, references=[CANDIDATE])
    assert set(calls) == {"score", "relearn", "distil", "recover"}


def test_models_are_left_untouched_and_named_by_their_weights_file(tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in CANDIDATE.state_dict().items()}
    result = audit(tmp_path, settings=dataclasses.replace(SETTINGS, attacks=("relearning",)))
    assert all(torch.equal(before[k], v) for k, v in CANDIDATE.state_dict().items())
    assert result.digests["candidate"] == save_weights(CANDIDATE, tmp_path / "w.safetensors")


def test_without_a_retrained_model_a_short_reference_is_trained_once(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, attacks=())
    first = audit(tmp_path, references=[], settings=settings)
    assert first.verdict.reference == "short"
    assert any("No retrained model was there" in note for note in first.notes)
    stamp = (tmp_path / "reference.safetensors").stat().st_mtime_ns
    assert audit(tmp_path, references=[], settings=settings).digests == first.digests
    assert (tmp_path / "reference.safetensors").stat().st_mtime_ns == stamp
    (tmp_path / "reference.safetensors").write_bytes(b"tampered")
    with pytest.raises(IntegrityError):
        audit(tmp_path, references=[], settings=settings)


def test_an_original_without_memory_voids_the_audit(tmp_path: Path) -> None:
    """An original that is no better on S than its reference cannot show that anything went."""
    settings = dataclasses.replace(SETTINGS, attacks=(), needed="hidden")
    result = audit(tmp_path, settings=settings, references=[ORIGINAL])
    assert any("passes every measure" in reason for reason in result.void)
    assert result.verdict.outcome != "passed"
    assert result.verdict.reached == "none"
    assert "The audit itself is void" in html_report(result.to_json())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"forget": ()}, "forget set is empty"),
        ({"test": ()}, "test set is empty"),
        ({"test": task.FORGET[:1]}, "given twice"),
        (
            {"test": (dataclasses.replace(task.TEST[0], person=task.FORGET[0].person),)},
            "divided by person",
        ),
    ],
)
def test_bad_sets_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        dataclasses.replace(SETS, **change)


def test_bad_settings_and_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no attack hypnosis"):
        AuditSettings(attacks=("hypnosis",))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="two unseen"):
        AuditSettings(attacked_unseen=1)
    with pytest.raises(IntegrityError):
        read_result(tmp_path / "audit.json")
    (tmp_path / "audit.json").write_text('{"format": 99, "verdict": {}}')
    with pytest.raises(IntegrityError, match="no audit result"):
        read_result(tmp_path / "audit.json")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An audit of a withdrawn structure that was told all there is to tell."""
    return told_everything(tmp_path_factory.mktemp("audit"))


def test_what_an_audit_is_told_is_in_its_result_and_report(everything: dict[str, Any]) -> None:
    found = {f["name"]: f for f in everything["findings"]}
    assert everything["places"] == [p.to_json() for p in PLACES]
    assert everything["cost"]["times"] == {"full": 5.0, "early_stopped": 2.5}
    assert everything["peak_memory_mib"] > 50
    assert everything["reversibility"]["same_weights"]
    assert found["reversibility"]["outcome"] == "pass"
    assert everything["class_mode"]["label"] == "lesion"
    assert len(everything["class_mode"]["row"]) == 2
    assert {"class_mode", "surface_dice", "hd95", "conformal", "nearest"} <= set(found)
    assert any("in one place outside" in words for words in everything["advice"])
    text = " ".join(read(html_report(everything)).texts)
    for words in (
        "cache/ab12",
        "The withdrawn structure",
        "the original is back",
        "5.0 times",
        "Why",
        "to the bit",
    ):
        assert words in text
    assert text.index("cache/ab12") < text.index("no exported model".capitalize())


def test_what_was_not_given_is_null_and_said(result: dict[str, Any]) -> None:
    assert (result["places"], result["cost"], result["reversibility"]) == ([], None, None)
    assert result["class_mode"] is None
    assert "were not searched in this audit" in html_report(result)


def test_every_finding_has_a_name_for_people(everything: dict[str, Any]) -> None:
    names = {f["name"] for f in everything["findings"]} | set(Policy().required["unlearned"])
    assert names <= set(NAMES)
    assert set(NAMES) - names <= {"forget_level"}  # under a full reference only
    text = " ".join(read(html_report(everything)).texts)
    assert all(NAMES[n] in text for n in names)
    assert not re.search(r"\b[a-z]+_[a-z]+\b", text)  # no name of a variable


def test_one_person_alone_is_told_what_would_settle_it(tmp_path: Path) -> None:
    person = task.FORGET[0].person
    studies = tuple(dataclasses.replace(s, person=person) for s in task.FORGET[:3])
    settings = dataclasses.replace(SETTINGS, attacks=("relearning",))
    for count in (3, 1):
        sets = dataclasses.replace(SETS, forget=studies[:count])
        result = audit(tmp_path / str(count), sets=sets, settings=settings)
        attacks = result.figures["candidate"].relearning or ()
        assert {a.unit for a in attacks} == {"studies"}
        assert (attacks[0].best_others is None) == (count == 1)
        found = {f.name: f for f in result.findings}
        assert "not enough people to show" in found["calibrated_membership"].words
        assert (found["relearning"].outcome == "unclear") == (count == 1)
        page = html_report(result.to_json())
        assert ("knows the studies" in page, "knows the study" in page) == (count > 1, count == 1)


@pytest.mark.parametrize(
    ("people", "outcome", "needed", "words"),
    [
        (1, "inconclusive", "unlearned", "One person alone cannot show"),
        (3, "inconclusive", "unlearned", "More can be shown with more people"),
        (1, "inconclusive", "retrained", "Train the model again"),
        (3, "refused", "unlearned", "Do not release"),
        (3, "passed", "unlearned", ""),
    ],
)
def test_the_report_says_what_to_do(people: int, outcome: Any, needed: Any, words: str) -> None:
    sets = dataclasses.replace(SETS, forget=task.FORGET[:people])
    said = advice(Verdict(outcome, "hidden", needed, "full", ()), sets, Policy(), ())
    assert words in " ".join(said)
    assert bool(said) == bool(words)


def test_a_short_reference_in_class_mode_never_saw_the_structure(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, attacks=(), needed="hidden")
    result = audit(tmp_path, references=[], settings=settings, withdrawn="lesion")
    reference = result.figures["reference-1"].withdrawn
    assert reference is not None
    mine = result.figures["candidate"].withdrawn
    assert mine is not None
    assert result.cost is not None
    assert result.cost["references"]["short"] > 0
    # one trained with the labels is another one
    first = result.digests["reference-1"]
    again = audit(tmp_path, references=[], settings=settings)
    assert again.digests["reference-1"] != first


class Reader(html.parser.HTMLParser):
    """Collects what a page would fetch, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            reference = name in ("src", "href", "xlink:href", "action", "srcset")
            if reference and not (value or "").startswith(("#", "data:")):
                self.fetched.append(f"{tag} {name}={value}")
        if tag in ("script", "link", "iframe", "object"):
            self.fetched.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_the_page_fetches_nothing_and_names_nobody(result: dict[str, Any]) -> None:
    page = html_report(result, asked={"Reason": "consent withdrawn <b>"})
    reader = read(page)
    assert reader.open == []
    assert reader.fetched == []
    assert not re.search(r"url\((?!#|data:)", page)
    assert not re.search(r"@import|<base|srcset=|\bsrc=(?!.data:)", page)
    # a name of a namespace is no address that is fetched
    addresses = re.findall(r"https?://[^\s\"'<>]+", page)
    assert set(addresses) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<b>consent" not in page
    assert "consent withdrawn &lt;b&gt;" in page
    assert not re.search(r"person-\d|series-\d|study-\d", page)
    assert "data:image" not in page  # no pixel


def test_the_verdict_comes_first_and_what_is_not_proved_is_said(result: dict[str, Any]) -> None:
    text = " ".join(read(html_report(result)).texts)
    order = ["Reached", "What was asked", "What was done", "Where the study may still be"]
    order += ["What was measured", "What it cost", "Plots", "What is not proved"]
    order += ["What the words mean"]
    places = [text.index(part) for part in [*order, "For the record"]]
    assert places == sorted(places)
    for finding in result["findings"]:
        assert finding["words"] in text
    assert result["digests"]["candidate"] in text


def test_the_verdict_is_in_plain_words_and_its_figures_are_folded(
    everything: dict[str, Any],
) -> None:
    page = html_report(everything)
    box = page[page.index('<div class="verdict') : page.index("<h2>What was asked")]
    plain, folded = box.split("<details>")
    shown = " ".join(read(plain.replace("</div>", "") + "</div>").texts)
    assert not re.search(r"\d\.\d|AUC|Dice", shown)
    assert all(html.escape(r) in folded for r in everything["verdict"]["reasons"])
    assert "It still draws the withdrawn structure" in shown
    # every measure that can refuse has such words
    deciding = {f["name"] for f in everything["findings"] if f["level"] != "none"}
    assert deciding | {"forget_level"} == set(FAILED)


def test_hidden_is_not_called_gone(result: dict[str, Any]) -> None:
    passed = {"outcome": "passed", "needed": "hidden", "reasons": []}
    findings = [
        {**f, "outcome": "fail" if f["name"] == "relearning" else "pass", "value": 0.2}
        for f in result["findings"]
        if f["level"] != "none"
    ]
    said = {}
    for reached in ("hidden", "unlearned"):
        conclusion = {**result["verdict"], **passed, "reached": reached}
        page = html_report({**result, "void": [], "findings": findings, "verdict": conclusion})
        said[reached] = page[page.index("<strong>") : page.index("<h2>What was asked")]
    assert "are gone" in said["unlearned"]
    assert "gone" not in said["hidden"]
    assert "the weights may still hold them" in said["hidden"]
    assert FAILED["relearning"][0] in said["hidden"]
    assert "The figures behind it (1)" in said["hidden"]


def test_pictures_appear_only_when_they_are_handed_in(result: dict[str, Any]) -> None:
    hidden = SETS.pseudonymised(PSEUDONYMS)
    pictures = middle_slices(CANDIDATE, ORIGINAL, REFERENCE, hidden, count=2)
    assert [p["name"] for p in pictures] == [s.series for s in hidden.forget[:2]]
    page = html_report(result, pictures=pictures)
    assert read(page).fetched == []
    assert "data:image" in page
    for title in ("annotation", "before", "after"):  # texts are drawn, and noted beside
        assert page.count(f"<!-- {title} -->") == html_report(result).count(f"<!-- {title} -->") + 1


def test_a_broken_result_is_refused(result: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="cannot be shown"):
        html_report({k: v for k, v in result.items() if k != "findings"})


def test_an_attested_audit_is_verified_with_its_files(
    result: dict[str, Any], tmp_path: Path
) -> None:
    create_keys(tmp_path / "k", tmp_path / "k.pub")
    files = {"audit.json": tmp_path / "audit.json", "report.html": tmp_path / "report.html"}
    files["audit.json"].write_text(json.dumps(result))
    write_report(files["report.html"], result)
    envelope = attest(result, files, read_private_key(tmp_path / "k"))
    public = read_public_key(tmp_path / "k.pub")
    content = verify_attestation(envelope, public, files)
    assert content["predicate"]["verdict"] == result["verdict"]
    assert "person-" not in json.dumps(content)
    text = files["report.html"].read_text()
    files["report.html"].write_text(text.replace("What is not proved", "What is proved"))
    with pytest.raises(IntegrityError, match=r"report\.html"):
        verify_attestation(envelope, public, files)
