"""A server on a PACS with studies of three sites: one is adapted, and what the others get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from app_sources import LABELS, Server, Study, make_study, publish_tiny, running_server, wait_until
from conftest import Orthanc
from segunlearn.dicom.identifiers import Pseudonyms, load_or_create_key
from segunlearn.dicom.segmentation import write_segmentation
from segunlearn.records.versions import VersionRegistry

pytestmark = [pytest.mark.slow, pytest.mark.pacs, pytest.mark.timeout(900)]

NAMES = {i + 1: name for i, name in enumerate(LABELS)}
ORDER = {
    "adapt_now": True, "site": "Hospital B", "adapt_method": "fine_tune", "adapt_steps": 10,
    "adapt_rate": 0.01, "inner_set": "all",
}  # fmt: skip


def of_site(number: int, institution: str, station: str = "CT1") -> Study:
    study = make_study(number)
    for dataset in study.datasets:
        dataset.InstitutionName, dataset.ManufacturerModelName = institution, "Phantom 64"
        dataset.StationName = station
    return study


def infer(server: Server, study: Study, **params: Any) -> dict[str, Any]:
    data = {"params": json.dumps(params)}
    answer = server.post(f"/infer/segmentation?image={study.series}&output=json", data=data)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(reply: dict[str, Any]) -> tuple[str, str]:
    return reply["adapter"], reply["site_rule"]


def test_three_sites(orthanc: Orthanc, tmp_path: Path) -> None:
    support = [of_site(n, "Hospital B") for n in range(3)]
    of_b = of_site(3, "HOSPITAL  b")
    of_a, of_c = of_site(4, "Hospital A"), of_site(5, "Hospital C")
    removed = of_site(6, "", "")
    for study in (*support, of_b, of_a, of_c, removed):
        orthanc.upload(study.datasets)
    orthanc.upload(write_segmentation(s.label, s.datasets, NAMES) for s in support)
    base = publish_tiny(tmp_path / "home")
    before = base.weights.read_bytes()
    with running_server(orthanc.url, tmp_path / "home", conf={"device": "cpu"}) as server:
        assert [said(infer(server, s)) for s in (of_b, of_a)] == [("base", "none")] * 2

        # stock clients start every trainer with its defaults: nothing may come of it
        plan = server.post("/train/site_adapt?run_sync=true", json={"segmentation": {}}).json()
        assert plan["planned"]
        assert plan["plan"]["studies"] == 3
        assert server.get("/adapters").json()["adapters"] == []

        result = server.post("/train/site_adapt?run_sync=true", json=ORDER).json()
        assert result["outcome"] == "adopted", result
        assert (result["site"], result["people"]) == ("hospital b||phantom 64|ct1", 3)
        adapter = result["adapter"]
        reply = infer(server, of_b)
        assert said(reply) == (adapter, "scanner")
        assert reply["site"] == result["site"]
        assert said(infer(server, of_a)) == ("base", "none")
        assert said(infer(server, of_c)) == ("base", "none")
        reply = infer(server, removed)
        assert said(reply) == ("base", "none")
        assert "de-identified" in reply["site_why"]
        assert said(infer(server, removed, site="Hospital B|Phantom|Phantom 64|CT1")) == (
            adapter, "override",
        )  # fmt: skip
        assert said(infer(server, of_b, site="base")) == ("base", "override")
        key = adapter.split("/")[0]
        rolled = server.post(f"/adapters/{key}/rollback")
        assert rolled.json() == {"key": key, "adapter": None}
        assert said(infer(server, of_b)) == ("base", "none")
        assert server.post(f"/adapters/{key}/v0001/activate").json()["serves"]
        assert said(infer(server, of_b)) == (adapter, "scanner")

        # forgetting: the adapter is gone with the answer, and is made again without the study
        study = str(support[0].datasets[0].StudyInstanceUID)
        mark = {"reason": "consent_withdrawn"}
        assert (
            requests.put(f"{server.url}/forget/studies/{study}", json=mark, timeout=60).status_code
            == 201
        )
        first = server.get("/adapters").json()["adapters"][0]
        assert (first["state"], first["here"], first["serves"]) == ("retired", False, False)
        assert said(infer(server, of_b))[0] != adapter

        def made_again() -> bool:
            lines = server.get("/adapters").json()["adapters"]
            return len(lines) == 2 and lines[1]["serves"]

        wait_until(made_again, 240, "the site is adapted again", server.log)
        reply = infer(server, of_b)
        assert said(reply) == (f"{key}/v0002", "scanner")
        (again,) = (a for a in server.get("/adapters").json()["adapters"] if a["serves"])
        assert again["about"]["k"] == 2
        pseudonym = Pseudonyms(load_or_create_key(tmp_path / "home" / "site.key")).of(study)
        assert pseudonym in first["about"]["support"]
        assert pseudonym not in again["about"]["support"]
        assert len(list((tmp_path / "home" / "sites").rglob("*.safetensors"))) == 1
    active = VersionRegistry(tmp_path / "home" / "models" / "segmentation").active()
    assert active is not None
    assert active.weights.read_bytes() == before  # no site touches the base
