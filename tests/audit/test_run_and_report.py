"""A stopped audit goes on, bad input is refused, and the report stands alone."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import memorising_task as task
from segunlearn.audit import measurements
from segunlearn.audit.attestation import attest, create_keys, read_private_key, read_public_key
from segunlearn.audit.attestation import verify as verify_attestation
from segunlearn.audit.distillation import DistillationSettings
from segunlearn.audit.relearning import RelearningSettings
from segunlearn.audit.report import html_report, middle_slices, write_report
from segunlearn.audit.run import AuditResult, Provenance, read_result, run_audit
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.settings import AuditSettings
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import CancelledError, IntegrityError, InvalidInputError
from segunlearn.networks import build_network, save_weights
from segunlearn.records.runs import Progress
from segunlearn.unlearning.retrain import RetrainSettings

PSEUDONYMS = Pseudonyms(bytes(32))
#: Few people and steps: the machinery is tested here, the figures elsewhere.
SETS = AuditSets(task.CONFIG, task.FORGET[:3], task.RETAIN[:6], task.CALIBRATION[:4], task.TEST[:6])
SETTINGS = AuditSettings(
    attacks=("relearning", "distillation", "recovery", "artefacts"),
    relearning=RelearningSettings(people=(1, 2), rates=(1e-3,), steps=2),
    distillation=DistillationSettings(steps=2),
    short_reference=RetrainSettings(epochs=1),
)
CANDIDATE, ORIGINAL, REFERENCE = (build_network(task.CONFIG, s).eval() for s in (1, 2, 3))


def audit(run_dir: Path, **options: Any) -> AuditResult:
    options = {"settings": SETTINGS, "references": [REFERENCE], **options}
    references, settings = options.pop("references"), options.pop("settings")
    return run_audit(
        CANDIDATE,
        ORIGINAL,
        references,
        options.pop("sets", SETS),
        settings,
        run_dir=run_dir,
        pseudonyms=PSEUDONYMS,
        **options,
    )


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
    assert len(calls) - before < 3 * 6
    assert seen[-1].step == seen[-1].total == 15
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
    assert not re.search(r"url\((?!#)", page)
    assert "<b>consent" not in page
    assert "consent withdrawn &lt;b&gt;" in page
    assert not re.search(r"person-\d|series-\d|study-\d", page)
    assert "data:image" not in page  # no pixel


def test_the_verdict_comes_first_and_what_is_not_proved_is_said(result: dict[str, Any]) -> None:
    text = " ".join(read(html_report(result)).texts)
    order = ["Reached:", "What was asked", "What was done", "What was measured", "Plots"]
    places = [text.index(part) for part in [*order, "What is not proved", "For the record"]]
    assert places == sorted(places)
    for finding in result["findings"]:
        assert finding["words"] in text
    assert result["digests"]["candidate"] in text


def test_pictures_appear_only_when_they_are_handed_in(result: dict[str, Any]) -> None:
    hidden = SETS.pseudonymised(PSEUDONYMS)
    pictures = middle_slices(CANDIDATE, ORIGINAL, REFERENCE, hidden, count=2)
    assert [p["name"] for p in pictures] == [s.series for s in hidden.forget[:2]]
    page = html_report(result, pictures=pictures)
    assert read(page).fetched == []
    assert "data:image" in page


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
