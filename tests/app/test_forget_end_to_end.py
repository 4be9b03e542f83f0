"""From the viewer to the PACS and back: the real server, the unmodified stock client, Orthanc."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from app_sources import (
    Server,
    Study,
    make_study,
    publish_tiny,
    running_server,
    stock_client_module,
    wait_until,
    write_files,
)
from key_object_sources import rejection_note
from orthanc_process import OrthancProcess
from segunlearn.app.marker import MARKER
from segunlearn.dicom.archive import open_archive
from segunlearn.dicom.retraction import parse_retraction
from segunlearn.volumes import read_volume, write_volume

pytestmark = [
    pytest.mark.slow,
    # the stock client leaves the file of an upload open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
MARK = {"reason": "consent_withdrawn", "note": "by phone"}


@dataclass
class Place:
    """A server on a PACS, and the stock client."""

    pacs: OrthancProcess
    server: Server
    home: Path
    studies: list[Study]
    client: Any

    def put(self, path: str, body: dict[str, Any] | None = None) -> requests.Response:
        return requests.put(self.server.url + path, json=body or MARK, timeout=60)

    def waiting(self) -> int:
        return int(self.server.get("/pacs/outbox").json()["waiting"])

    def states(self, study: str) -> list[str]:
        """States that the documents in the PACS tell of a study, in their order."""
        archive = open_archive(self.pacs.url, index_dir=self.home)
        found = []
        for series in archive.series_of_study(study):
            if series.modality == "KO":
                for i in archive.instances(study, series.series_instance_uid):
                    header = archive.header(study, series.series_instance_uid, i.SOPInstanceUID)
                    retraction = parse_retraction(header)
                    if retraction is not None:
                        found.append((int(header.InstanceNumber), retraction.state))
        return [state for _, state in sorted(found)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("forget")
    pacs = OrthancProcess(root)
    studies = [make_study(n) for n in range(4)]
    publish_tiny(root / "home")
    pacs.start()
    try:
        pacs.upload([ds for study in studies for ds in study.datasets])
        with running_server(pacs.url, root / "home", conf={"poll": "2"}) as server:
            client = stock_client_module().MONAILabelClient(
                server.url, tmpdir=str(root), client_id="reader"
            )
            yield Place(pacs, server, root / "home", studies, client)
    finally:
        pacs.stop()


def uid(study: Study) -> str:
    return str(study.datasets[0].StudyInstanceUID)


def marked(place: Place, study: Study) -> bool:
    answer = place.server.get("/forget/status", params={"study": uid(study)}).json()
    return bool(answer[uid(study)]["marked"])


@pytest.mark.pacs
def test_the_marker_is_listed_last_and_has_no_labels(place: Place) -> None:
    info = place.client.info()
    assert list(info["models"])[-1] == MARKER
    assert info["models"][MARKER]["labels"] in ([], {})
    assert info["models"][MARKER]["config"]["mark"] == ["forget", "keep"]
    assert "config" not in info
    assert set(info["labels"]) == set(info["models"]["segmentation"]["labels"])


@pytest.mark.pacs
def test_the_stock_client_marks_the_loaded_image(place: Place, tmp_path: Path) -> None:
    study = place.studies[0]
    options = {"mark": "forget", "reason": "wrong_label", "result_extension": ".nrrd"}
    file, params = place.client.infer(MARKER, study.series, options)
    assert file.endswith(".nrrd")
    mask = read_volume(Path(file), label=True)
    assert mask.same_grid(study.image)
    assert not mask.array.any()
    assert params["state"] == "requested"
    assert marked(place, study)
    request = place.server.get(f"/forget/requests/{params['request_id']}").json()
    assert (request["target"]["kind"], request["target"]["id"]) == ("study", uid(study))
    assert request["reason"] == "wrong_label"
    again = place.client.infer(MARKER, study.series, options)[1]
    assert (again["request_id"], again["created"]) == (params["request_id"], False)
    wait_until(lambda: place.states(uid(study)) == ["requested"], 20, "the PACS is told")
    # from now on it is proposed to nobody
    for _ in range(6):
        assert place.client.next_sample("random", {})["id"] != study.series
    # and taken back with the same button
    kept = place.client.infer(MARKER, study.series, {"mark": "keep"})[1]
    assert kept["state"] == "withdrawn"
    assert not marked(place, study)
    wait_until(
        lambda: place.states(uid(study)) == ["requested", "withdrawn"], 20, "the PACS is told"
    )
    # the image is as it was, and the answer was never kept as a label
    assert place.client.info()["datastore"]["completed"] == 0


@pytest.mark.pacs
def test_what_the_marker_refuses(place: Place) -> None:
    url = f"{place.server.url}/infer/{MARKER}"
    for query, params in (
        ({"image": "1.2.3"}, "{}"),
        ({"image": "../../etc/passwd"}, "{}"),
        ({"image": place.studies[1].series}, '{"mark": "purge"}'),
        ({"image": place.studies[1].series}, '{"reason": 7}'),
        ({"image": place.studies[1].series, "output": "dicom_seg"}, "{}"),
        ({}, "{}"),
    ):
        answer = requests.post(url, params=query, data={"params": params}, timeout=60)
        assert 400 <= answer.status_code < 500, answer.text
        assert len(answer.json()["detail"]) > 10
    path = place.home / "upload.nii.gz"
    write_volume(place.studies[1].image, path)
    with path.open("rb") as file:
        answer = requests.post(url, files={"file": ("1.2.3.nii.gz", file)}, timeout=60)
    assert answer.status_code == 400
    assert not marked(place, place.studies[1])
    # a batch over all images must not mark them all
    batch = place.server.post(f"/batch/infer/{MARKER}", params={"images": "all"}, json={})
    assert 400 <= batch.status_code < 500
    assert not marked(place, place.studies[1])


@pytest.mark.pacs
def test_a_segment_named_forget_marks_the_study(place: Place, tmp_path: Path) -> None:
    study = place.studies[1]
    path = tmp_path / "label.nrrd"
    write_volume(study.label, path)
    names = [{"name": "core", "idx": 1}, {"name": "shell", "idx": 2}, {"name": "FORGET", "idx": 3}]
    saved = place.client.save_label(study.series, str(path), params={"label_info": names})
    assert saved["forget"]["created"]
    assert marked(place, study)
    kept = place.client.download_label(study.series, "final")
    np.testing.assert_array_equal(read_volume(Path(kept), label=True).array, study.label.array)


@pytest.mark.pacs
def test_marks_while_the_pacs_is_down_reach_it_afterwards(place: Place) -> None:
    study = place.studies[2]
    wait_until(lambda: place.waiting() == 0, 20, "nothing waits")
    assert place.server.get("/forget/status", params={"study": uid(study)}).status_code == 200
    place.pacs.stop()
    try:
        answer = place.put(f"/forget/studies/{uid(study)}")
        assert answer.status_code == 201
        request = f"/forget/requests/{answer.json()['request_id']}"
        assert place.server.post(f"{request}/approve").status_code == 200
        assert place.waiting() == 2
        assert marked(place, study)
    finally:
        place.pacs.start()
    wait_until(
        lambda: place.states(uid(study)) == ["requested", "approved"],
        60,
        "the PACS is told in order",
        place.server.log,
    )


@pytest.mark.pacs
def test_a_rejection_note_is_proposed_to_a_person(place: Place) -> None:
    study = place.studies[3]
    place.pacs.upload([rejection_note(study.datasets)])

    def proposed() -> list[dict[str, Any]]:
        answer = place.server.get("/forget/requests", params={"state": "proposed"}).json()
        return [r for r in answer["requests"] if r["target"]["id"] == uid(study)]

    (proposal,) = wait_until(proposed, 60, "it is proposed", place.server.log)
    assert (proposal["reason"], proposal["live"]) == ("retention_expired", False)
    assert not marked(place, study)
    approved = place.server.post(f"/forget/requests/{proposal['request_id']}/approve")
    assert approved.json()["state"] == "approved"
    assert marked(place, study)


def test_a_folder_of_files_is_marked_by_file_names(tmp_path: Path) -> None:
    studies = [make_study(n) for n in range(2)]
    write_files(tmp_path / "studies", studies)
    publish_tiny(tmp_path / "home")
    with running_server(str(tmp_path / "studies"), tmp_path / "home") as server:
        client = stock_client_module().MONAILabelClient(server.url, tmpdir=str(tmp_path))
        assert client.infer(MARKER, "person0", {})[1]["state"] == "requested"
        status = server.get("/forget/status", params={"series": ["person0", "person1"]}).json()
        assert status["person0"]["marked"]
        assert not status["person1"]["marked"]
        assert client.next_sample("first", {})["id"] == "person1"
        assert server.get("/pacs/outbox").status_code == 404
        paths = server.get("/openapi.json").json()["paths"]
        assert {"/forget/requests", "/ledger/verify", "/runs/{run_id}/events"} <= set(paths)
