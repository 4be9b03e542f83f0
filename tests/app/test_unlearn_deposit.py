"""A low-rank repair is sealed as a small deposit, which brings the old weights back bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

from audit_home import MODEL, site_in
from segunlearn.app.unlearn_finish import Finisher
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_run import UnlearnRun
from segunlearn.app.unlearn_undo import Undo
from segunlearn.records.versions import file_sha256
from unlearn_storm import passing_audit


def test_a_low_rank_repair_is_undone_from_its_deposit(tmp_path: Path) -> None:
    site = site_in(tmp_path, forget=1, retain=3, unseen=6)
    before = site.publish(1, [*site.forget, *site.retain])
    weights = before.weights.read_bytes()
    (request,) = site.mark(site.forget)
    order = UnlearnOrder(
        MODEL, (request,), method="erode_and_repair_lora", device="cpu",
        settings={"epochs": 1, "inits": 1},
    )  # fmt: skip
    with mock.patch.object(UnlearnRun, "_audited", passing_audit):
        result = UnlearnRun(order, site.home, site.records, "test").execute(site.cases)
    assert result["outcome"] == "published"
    deposits = Finisher(site.home, site.records).deposits
    (deposit,) = deposits.of_request(request)
    (entry,) = deposit.entries
    assert (entry.kind, entry.version, entry.sha256) == ("adapter", "v0001", before.sha256)
    assert weights not in b"".join(p.read_bytes() for p in site.home.root.rglob("*.sealed"))
    assert not list(site.home.unlearning.iterdir())  # the open deposit lay there
    row = site.records.ledger.row(result["run_id"])
    assert "key" not in str(row.parameters["settings"])

    Undo(site.home, site.records, MODEL, "test").restore(request)
    active = site.registry.active()
    assert active is not None
    assert active.version == "v0001"
    assert active.weights.read_bytes() == weights
    assert file_sha256(active.weights) == before.sha256


def refusing_audit(run: UnlearnRun, *_: object) -> dict[str, object]:
    verdict = {"outcome": "refused", "reached": "none", "needed": "", "reasons": ["it knows them"]}
    return {"verdict": verdict, "about": {"audit_id": "1" * 32}}


def test_a_refused_candidate_does_not_stand_in_the_way_of_the_next_one(tmp_path: Path) -> None:
    """Its weights are destroyed already: it knew the study, and nothing of it is to be sealed."""
    site = site_in(tmp_path, forget=1, retain=3, unseen=6)
    before = site.publish(1, [*site.forget, *site.retain])
    weights = before.weights.read_bytes()
    (request,) = site.mark(site.forget)
    order = UnlearnOrder(MODEL, (request,), method="fine_tune", settings={"steps": 1}, device="cpu")
    with mock.patch.object(UnlearnRun, "_audited", refusing_audit):
        refused = UnlearnRun(order, site.home, site.records, "test").execute(site.cases)
    assert refused["outcome"] == "refused"
    again = replace(order, settings={"steps": 2})
    with mock.patch.object(UnlearnRun, "_audited", passing_audit):
        result = UnlearnRun(again, site.home, site.records, "test").execute(site.cases)
    assert (result["outcome"], result["version"]) == ("published", "v0003")
    assert {v.version: v.weights_state for v in site.registry.versions()} == {
        "v0001": "sealed", "v0002": "destroyed", "v0003": "here",
    }  # fmt: skip
    undo = Undo(site.home, site.records, MODEL, "test")
    assert undo.restore(request)["version"] == "v0001"
    assert site.registry.get("v0001").weights.read_bytes() == weights


def test_what_only_an_older_version_knows_is_sealed_and_the_served_one_goes_on(
    tmp_path: Path,
) -> None:
    site = site_in(tmp_path, forget=1, retain=3, unseen=6)
    site.publish(1, [*site.forget, *site.retain])
    site.publish(2, site.retain)
    (request,) = site.mark(site.forget)
    order = UnlearnOrder(MODEL, (request,), device="cpu")
    result = UnlearnRun(order, site.home, site.records, "test").execute(site.cases)
    assert result["outcome"] == "not needed"
    assert result["requests"][request]["state"] == "fulfilled"
    assert {v.version: v.weights_state for v in site.registry.versions()} == {
        "v0001": "sealed", "v0002": "here",
    }  # fmt: skip
    back = Undo(site.home, site.records, MODEL, "test").restore(request)
    assert back["version"] == "v0002"
    states = {v.version: (v.state, v.weights_state) for v in site.registry.versions()}
    assert states == {"v0001": ("available", "here"), "v0002": ("active", "here")}
