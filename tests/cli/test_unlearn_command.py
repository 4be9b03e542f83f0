"""``segunlearn unlearn``, ``restore``, ``purge``, ``models``: what they say, what they change."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from audit_home import MODEL, Site
from segunlearn import cli
from segunlearn.app import unlearn_check, unlearn_run
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.errors import CancelledError
from segunlearn.networks import load_weights
from segunlearn.records.outbox import Outbox
from unlearn_site import PERSON, copy_of, everything, known_site, let_it_pass
from unlearn_storm import passing_audit


class Shell:
    """Runs ``segunlearn`` on a site as its script does, in this process."""

    def __init__(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.site, self._monkeypatch, self._capsys = site, monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        home = ["--home", str(self.site.home.root), "--model", MODEL]
        self._monkeypatch.setattr(sys, "argv", ["segunlearn", *map(str, words), *home])
        self._monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        return code, out, err

    def unlearn(self, *words: object) -> tuple[int, str, str]:
        return self("unlearn", *self.where, *words)

    @property
    def where(self) -> tuple[object, ...]:
        """Options that say where the labelled cases are."""
        data = self.site.cases[0].image.parents[1]
        return ("--data", data, "--person-regex", PERSON, "--modality", "MR", "--device", "cpu")

    def json(self, *words: object) -> Any:
        call = self.unlearn if words[0] == "unlearn" else self
        code, out, err = call(*(words[1:] if words[0] == "unlearn" else words), "--json")
        assert code == 0, err
        return json.loads(out)

    def refused(self, *words: object) -> str:
        """Error of an unlearning: one sentence, exit code 2, and nothing was changed."""
        before = everything(self.site)
        code, out, err = self.unlearn(*words)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert everything(self.site) == before
        return err


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return known_site(tmp_path_factory.mktemp("unlearn"))


@pytest.fixture
def site(built: Site, tmp_path: Path) -> Site:
    return copy_of(built, tmp_path)


@pytest.fixture
def shell(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(site, monkeypatch, capsys)


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_pass(monkeypatch)


def test_without_run_it_only_plans(site: Site, shell: Shell) -> None:
    (request,) = site.mark(site.forget[:1])
    before = everything(site)
    code, out, _ = shell.unlearn()
    assert code == 0
    assert request in out
    assert out.rstrip().endswith("nothing was changed; add --run")
    plan = shell.json("unlearn", "--plan")
    assert plan["dry_run"] is True
    assert [r["id"] for r in plan["requests"]] == [request]
    assert (plan["studies"], plan["people"], plan["retained"]) == (1, 1, 5)
    assert {"retrain", "erode_and_repair"} <= {w["method"] for w in plan["ways"]}
    assert everything(site) == before
    assert site.records.runs.latest(kind="unlearn") is None
    assert "one of them" in shell.refused("--plan", "--run")


@pytest.mark.usefixtures("passing")
def test_what_another_model_cannot_forget_is_told_before_and_after(
    site: Site, shell: Shell
) -> None:
    other = replace(site, model="other")
    other.publish(2, [*site.forget, *site.retain, *site.unseen[:22]])
    (request,) = site.mark(site.forget[:1])
    told = "other knows what is to be forgotten, and cannot be unlearned as things are"
    code, out, _ = shell.unlearn()
    assert (code, told in out) == (0, True)
    code, out, err = shell.unlearn("--run", "--method", "fine_tune")
    assert (code, told in out, told in " ".join(err.split())) == (0, True, True)
    assert f"request {request}: working, reached unlearned" in out


@pytest.mark.usefixtures("passing")
def test_published_restored_published_purged(site: Site, shell: Shell) -> None:
    ids = site.mark(site.forget)
    weights = site.registry.get("v0001").weights.read_bytes()
    code, out, err = shell.unlearn("--run", "--method", "fine_tune", "--set", "steps=1")
    assert code == 0, err
    assert "published: v0002 is in service" in out
    assert "reached unlearned: the attacks of the audit find no more" in out
    assert all(f"request {r}: fulfilled, reached unlearned" in out for r in ids)
    assert "report.html" in out
    run = site.records.runs.latest(kind="unlearn")
    assert run is not None
    assert run.parameters["settings"] == {"steps": 1}
    assert "(command line)" in run.requested_by

    listed = {v["version"]: v for v in shell.json("models")["versions"]}
    assert (listed["v0001"]["state"], listed["v0001"]["weights_state"]) == ("retired", "sealed")
    assert (listed["v0002"]["method"], listed["v0002"]["level"]) == ("fine_tune", "unlearned")
    assert shell.json("models")["active"] == "v0002"
    code, out, _ = shell("models")
    assert code == 0
    assert "sealed" in out
    code, _, err = shell("models", "activate", "v0001")
    assert (code, "is retired" in err) == (2, True)
    # an option before the word would be another home's or another model's
    code, _, err = shell("models", "--model", "liver", "--json", "activate", "v0001")
    assert (code, "--model, --json: an option of 'activate'" in err) == (2, True)

    code, out, err = shell("restore", ids[0], "--why", "by mistake")
    assert code == 0, err
    assert out.startswith("v0001 is in service again")
    assert all(r in out for r in ids)
    assert site.registry.get("v0001").weights.read_bytes() == weights
    assert site.records.forget_set.history(ids[0])[-1].why == "by mistake"

    again = site.mark(site.forget)
    assert shell.unlearn("--run", "--method", "fine_tune")[0] == 0
    before = everything(site)
    code, out, err = shell("purge", again[0])
    assert (code, out) == (2, "")
    assert "v0001" in err
    assert f"would lose their way back, too: {again[1]}" in err
    assert "add --yes" in err
    code, out, _ = shell("purge", again[0], "--json")
    plan = {"destroyed": ["v0001"], "requests": [again[1]], "dry_run": True}
    assert (code, json.loads(out)) == (2, plan)
    assert everything(site) == before
    found = shell.json("purge", again[0], "--yes")
    assert (found["destroyed"], found["requests"]) == (["v0001"], [again[1]])
    assert site.records.forget_set.get(again[0]).state == "purged"
    assert site.registry.get("v0001").weights_state == "destroyed"
    assert not Finisher(site.home, site.records).keys.has(again[0])
    code, _, err = shell("restore", again[1])
    assert (code, "has no deposit" in err) == (2, True)


@pytest.mark.usefixtures("passing")
def test_each_step_waits_to_be_told_to_the_pacs(site: Site, shell: Shell) -> None:
    """The server that is connected to it sends what a command did, too."""
    (request,) = site.mark(site.forget[:1])  # by records without a PACS: nothing is told of these
    assert shell.unlearn("--run", "--method", "fine_tune")[0] == 0
    assert shell("restore", request)[0] == 0
    (request,) = site.mark(site.forget[:1])
    assert shell.unlearn("--run", "--method", "fine_tune")[0] == 0
    assert shell("purge", request, "--yes")[0] == 0
    states = [item.payload["state"] for item in Outbox(site.records.store).list()]
    assert states == ["working", "fulfilled", "restored", "working", "fulfilled", "purged"]


@pytest.mark.usefixtures("passing")
def test_restored_in_another_order(site: Site, shell: Shell) -> None:
    ids = []
    for case in site.forget:
        ids += site.mark([case])
        assert shell.unlearn("--run", "--method", "fine_tune")[0] == 0
    first, second = ids
    before = everything(site)
    code, out, err = shell("restore", first)
    assert (code, out) == (2, "")
    assert f"forget request(s) took out of service ({second})" in err
    assert f"segunlearn restore {first} --data" in err
    plan = shell.json("restore", first, "--plan")
    assert plan == {"version": "v0001", "requests": [first], "again": [second], "dry_run": True}
    code, out, _ = shell("restore", first, "--plan", *shell.where)
    assert code == 0
    assert f"request {first} (fulfilled): comes back" in out
    assert f"request {second} (fulfilled): stays forgotten" in out
    assert out.rstrip().endswith("nothing was changed; leave --plan out")
    mistake = ("--method", "fine_tune", "--set", "stepz=1")
    assert shell("restore", first, *shell.where, *mistake)[0] == 2
    assert everything(site) == before

    code, out, err = shell("restore", first, *shell.where, "--method", "fine_tune")
    assert code == 0, err
    assert "restored: v0004 is in service" in out
    assert f"restored: {first}" in out
    assert "not served any more: v0003" in out
    assert f"request {second}: fulfilled, reached unlearned" in out
    assert "report.html" in out
    code, out, _ = shell("restore", second, *shell.where)  # nothing else is forgotten any more
    assert (code, out.startswith("v0001 is in service again")) == (0, True)


def test_a_refusal_is_exit_code_3(
    site: Site, shell: Shell, passing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(run: UnlearnRun, *others: Any) -> dict[str, Any]:
        verdict = {"outcome": "refused", "reached": "none", "reasons": ["It relearns."]}
        return {**passing_audit(run), "verdict": verdict}

    monkeypatch.setattr(UnlearnRun, "_audited", refusing)
    (request,) = site.mark(site.forget[:1])
    code, out, _ = shell.unlearn("--run", "--method", "fine_tune")
    assert code == 3
    assert "nothing changed for users" in out
    assert "It relearns." in out
    assert f"request {request}: refused" in out
    assert shell.json("models")["active"] == "v0001"


@pytest.mark.usefixtures("passing")
def test_hidden_says_that_it_is_no_erasure(site: Site, shell: Shell) -> None:
    (request,) = site.mark(site.forget[:1])
    code, out, _ = shell.unlearn("--run", "--method", "fine_tune", "--level", "hidden")
    assert code == 0
    assert "never called erasure" in out
    assert "not fulfilled" in out
    assert f"request {request}: working, reached hidden, needed unlearned" in out
    code, _, err = shell("models", "activate", "v0001")  # it is here, and it knows the study
    assert code == 2
    assert request in err
    assert shell.json("models")["active"] == "v0002"
    for words in (["--yes"], []):
        code, _, err = shell("purge", request, *words)
        assert (code, "is working" in err) == (2, True)


def test_ctrl_c_leaves_the_old_version(
    site: Site, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        cancel = arguments[-1]
        signal.raise_signal(signal.SIGINT)
        assert cancel()
        raise CancelledError("the unlearning was stopped.")

    monkeypatch.setattr(unlearn_run, "make", interrupted)
    (request,) = site.mark(site.forget[:1])
    code, _, err = shell.unlearn("--run", "--method", "fine_tune")
    assert (code, "stopped: " in err) == (130, True)
    assert site.records.forget_set.get(request).state == "refused"
    assert [v.state for v in site.registry.versions()] == ["active"]
    run = site.records.runs.latest(kind="unlearn")
    assert run is not None
    assert run.state == "cancelled"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "wishing"), "there are retrain, fine_tune"),
        (("--method", "wishing", "--set", "steps=1"), "there are retrain, fine_tune"),
        (("--set", "steps=1"), "name it by --method"),
        (("--method", "fine_tune", "--set", "stepz=1"), "it has|has batch_size"),
        (("--method", "fine_tune", "--set", "steps"), "write NAME=VALUE"),
        (("--method", "fine_tune", "--set", "steps=few"), "whole number"),
        (("--method", "retrain", "--retain", "none"), "cannot do without the retain set"),
        (("--method", "fine_tune", "--retain", "none"), "cannot do without the retain set"),
        (("--method", "calibrated", "--set", "structure=1"), "Train again without the label"),
        (("--references", "3"), "only trained with --with-reference"),
        (("--request", "0" * 32), "no forget request|no such|there is no"),
        (("--studies", "x"), "either --data or --studies"),
    ],
)
def test_mistakes_are_one_sentence(
    site: Site, shell: Shell, words: tuple[str, ...], said: str
) -> None:
    site.mark(site.forget[:1])
    err = shell.refused("--run", *words)
    assert any(part in err for part in said.split("|")), err


def test_nothing_approved(site: Site, shell: Shell) -> None:
    assert "no forget request is approved" in shell.refused("--run")
    (request,) = site.mark(site.forget[:1], approve=False)
    assert "no forget request is approved" in shell.refused("--run")
    assert "Approve it first" in shell.refused("--run", "--request", request)


def test_everything_is_to_be_forgotten(site: Site, shell: Shell) -> None:
    """Nothing is left to keep, so that nothing could be held against a model without it."""
    site.mark([*site.forget, *site.retain])
    for method in ("retrain", "erode_and_repair", "recoverable"):
        assert "none of the other people" in shell.refused("--run", "--method", method)


def test_nobody_was_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = known_site(tmp_path, unseen=2)
    site.mark(site.forget)
    shell = Shell(site, monkeypatch, capsys)
    assert "2 labelled people were never seen" in shell.refused("--run", "--method", "retrain")


def test_too_few_people_to_calibrate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = known_site(tmp_path, unseen=6)
    site.mark(site.forget)
    shell = Shell(site, monkeypatch, capsys)
    for method in ("calibrated", "adversarial"):
        said = shell.refused("--run", "--method", method)
        assert "the calibration set holds 2 people; 5 are needed" in said
    assert shell.unlearn("--plan")[0] == 0  # other ways are open


def test_batch_normalisation(site: Site, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its running means are made of all studies, and no adapter takes one out of them."""

    def normalised(*arguments: Any) -> nn.Module:
        network = load_weights(*arguments)
        network.add_module("norm", nn.BatchNorm2d(4))
        return network

    monkeypatch.setattr(unlearn_check, "load_weights", normalised)
    site.mark(site.forget[:1])
    for method in ("erode_and_repair_lora", "calibrated", "adversarial", "recoverable"):
        assert "norm" in shell.refused("--run", "--method", method)
