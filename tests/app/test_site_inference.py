"""Inference with adapters in this process: replies, DICOM SEG, and what stays loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from typer.testing import CliRunner

from app_sources import LABELS, TINY, Study, make_study, publish_tiny, write_dicom, write_files
from segunlearn.adapters.site import SiteAdapter
from segunlearn.app import models
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.models import ActiveModel
from segunlearn.cli import app as command_line
from segunlearn.dicom.segmentation import read_segmentation
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import IntegrityError, InvalidInputError, NotFoundError
from segunlearn.networks import build_network
from segunlearn.volumes import read_volume

SITES = {
    "a": {"InstitutionName": "North", "ManufacturerModelName": "CT 64", "StationName": "CT1"},
    "b": {"InstitutionName": "South", "ManufacturerModelName": "CT 64", "StationName": "CT1"},
    "removed": {"InstitutionName": "", "ManufacturerModelName": "CT 64"},
}


@pytest.fixture
def studies() -> dict[str, Study]:
    found = {}
    for number, (site, header) in enumerate(SITES.items()):
        found[site] = make_study(number)
        for dataset in found[site].datasets:
            for keyword, value in header.items():
                setattr(dataset, keyword, value)
    return found


@pytest.fixture
def app(tmp_path: Path, studies: dict[str, Study]) -> Iterator[SegUnlearnApp]:
    write_dicom(tmp_path / "studies", list(studies.values()))
    publish_tiny(tmp_path / "home")
    made = app_in(tmp_path)
    yield made
    made.records.store.close()


def app_in(root: Path) -> SegUnlearnApp:
    conf = {"home": str(root / "home"), "labels": ",".join(LABELS), "device": "cpu"}
    return SegUnlearnApp(str(root), str(root / "studies"), conf)


def everything_is(label: int, base: str, strength: float = 100.0) -> SiteAdapter:
    """An adapter that makes every voxel one structure."""
    network = build_network(TINY, 1)
    bias = torch.zeros_like(network.get_parameter("final_conv.bias"))
    bias[label] = strength
    return SiteAdapter(base, {"final_conv.bias": bias}, {"k": 1})


def put(app: SegUnlearnApp, site: str, label: int, strength: float = 100.0) -> Any:
    adapter = everything_is(label, app.model.version().sha256, strength)
    return app.model.adapters.put(site, adapter, run_id="r", note=lambda _: None)


def infer(app: SegUnlearnApp, image: Any, **options: Any) -> tuple[set[int], dict[str, Any]]:
    result = app.infer({"model": "segmentation", "image": image, **options})
    path = Path(result["file"])
    values = set(np.unique(read_volume(path, label=True).array).tolist())
    path.unlink()
    return values, result["params"]


def test_each_site_gets_its_own_adapter_and_the_reply_says_so(
    app: SegUnlearnApp, studies: dict[str, Study]
) -> None:
    before = Path(app.model.version().weights).read_bytes()
    info = put(app, "south||ct 64|ct1", 1)
    values, params = infer(app, studies["b"].series)
    assert values == {1}
    said = {k: params[k] for k in ("adapter", "adapter_sha256", "site", "site_rule")}
    assert said == {
        "adapter": info.name, "adapter_sha256": info.sha256,
        "site": "south||ct 64|ct1", "site_rule": "scanner",
    }  # fmt: skip
    values, params = infer(app, studies["a"].series)
    assert (values == {1}, params["adapter"], params["site"]) == (False, "base", "north||ct 64|ct1")
    _, params = infer(app, studies["removed"].series)
    assert (params["adapter"], params["site_rule"]) == ("base", "none")
    assert "de-identified" in params["site_why"]
    values, params = infer(app, studies["removed"].series, site="south||ct 64|ct1")
    assert (values, params["site_rule"]) == ({1}, "override")
    values, params = infer(app, studies["b"].series, site="base")
    assert (values == {1}, params["adapter"]) == (False, "base")
    assert Path(app.model.version().weights).read_bytes() == before


def test_another_pointer_is_another_network(app: SegUnlearnApp, studies: dict[str, Study]) -> None:
    put(app, "south||ct 64|ct1", 1)
    put(app, "south||ct 64|ct1", 2)
    assert infer(app, studies["b"].series)[0] == {2}
    app.model.adapters.roll_back("south||ct 64|ct1", app.model.version())
    assert infer(app, studies["b"].series)[0] == {1}
    app.model.adapters.roll_back("south||ct 64|ct1", app.model.version())
    assert infer(app, studies["b"].series)[1]["adapter"] == "base"


@pytest.mark.parametrize("moment", ["turn", "adapted"])
def test_an_adapter_that_goes_while_an_image_waits_does_not_segment_it(
    app: SegUnlearnApp, studies: dict[str, Study], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It was chosen, and is taken by a mark before its turn comes or before it is loaded."""
    info = put(app, "south||ct 64|ct1", 1)
    real = getattr(ActiveModel, moment)

    def taken(*given: Any) -> Any:
        app.model.adapters.destroy([info], "marked")
        return real(*given)

    monkeypatch.setattr(ActiveModel, moment, taken)
    values, params = infer(app, studies["b"].series)
    assert (values == {1}, params["adapter"], params["site_rule"]) == (False, "base", "none")


def test_a_new_base_is_not_served_with_an_old_adapter(
    app: SegUnlearnApp, studies: dict[str, Study], tmp_path: Path
) -> None:
    put(app, "south||ct 64|ct1", 1)
    infer(app, studies["b"].series)
    publish_tiny(tmp_path / "home", seed=2)
    _, params = infer(app, studies["b"].series)
    assert (params["version"], params["adapter"]) == ("v0002", "base")
    assert "other weights" in params["site_why"]


def test_the_segmentation_object_names_adapter_and_rule(
    app: SegUnlearnApp, studies: dict[str, Study]
) -> None:
    info = put(app, "south||ct 64|ct1", 1)
    for site, adapter, rule in (("b", info.name, "scanner"), ("a", "base", "none")):
        seg = app.infer_dicom_seg({"model": "segmentation", "image": studies[site].series})
        algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
        said = str(algorithm.AlgorithmParameters)
        assert f"site adapter={adapter}" in said
        assert f"site rule={rule}" in said
        assert str(algorithm.AlgorithmVersion).startswith("v0001")


def test_more_structures_than_a_byte_counts(tmp_path: Path, studies: dict[str, Study]) -> None:
    write_dicom(tmp_path / "studies", [studies["a"]])
    config = replace(TINY, labels=tuple(f"s{n}" for n in range(1, 301)))
    info = publish_tiny(tmp_path / "home", config=config)
    conf = {"home": str(tmp_path / "home"), "device": "cpu"}
    app = SegUnlearnApp(str(tmp_path), str(tmp_path / "studies"), conf)
    bias = torch.zeros(301)
    bias[300] = 100.0
    adapter = SiteAdapter(info.sha256, {"final_conv.bias": bias}, {"k": 1})
    app.model.adapters.put("north||ct 64|ct1", adapter, run_id="r", note=lambda _: None)
    series = studies["a"].series
    for options in ({}, {"result_dtype": "int16"}, {"result_dtype": "float32"}):
        assert infer(app, series, **options)[0] == {300}
    for name, most in (("uint8", 255), ("int8", 127)):
        with pytest.raises(InvalidInputError, match=f"{name} holds {most} .* the model has 300"):
            infer(app, series, result_dtype=name)
    seg = app.infer_dicom_seg({"model": "segmentation", "image": series})
    label, names = read_segmentation(seg, studies["a"].datasets)
    assert (set(np.unique(label.array)), names[300]) == ({300}, "s300")
    app.records.store.close()


def test_notes_of_older_programs_have_no_header_yet(
    app: SegUnlearnApp, studies: dict[str, Study]
) -> None:
    series = studies["b"].series
    app.datastore().get_image_uri(series)
    path = app.home.cache / "images" / f"{series}.json"
    note = json.loads(path.read_text())
    assert SiteKey.parse(note.pop("header")).institution == "south"
    path.write_text(json.dumps(note))
    put(app, "south||ct 64|", 1)
    assert infer(app, series)[1]["site_rule"] == "institution"


def test_an_uploaded_series_is_known_by_its_files_and_an_image_file_is_not(
    app: SegUnlearnApp, studies: dict[str, Study], tmp_path: Path
) -> None:
    put(app, "south||ct 64|ct1", 1)
    folder = tmp_path / "studies" / studies["b"].series
    assert infer(app, folder)[1]["site_rule"] == "scanner"
    write_files(tmp_path / "files", [make_study(9)])
    file = tmp_path / "files" / "person0.nii.gz"
    _, params = infer(app, file)
    assert (params["adapter"], params["site_rule"]) == ("base", "none")
    assert "no DICOM header" in params["site_why"]
    assert infer(app, file, site=["south||ct 64|ct1", "base"])[0] == {1}


def test_a_site_that_is_no_text_is_refused(app: SegUnlearnApp, studies: dict[str, Study]) -> None:
    for site in (5, {"a": 1}, "x" * 400):
        with pytest.raises(InvalidInputError, match="name one site"):
            infer(app, studies["b"].series, site=site)
    with pytest.raises(NotFoundError):
        infer(app, studies["b"].series, site="elsewhere")


def test_batch_inference_takes_a_site_and_each_entry_says_what_made_the_mask(
    app: SegUnlearnApp, studies: dict[str, Study]
) -> None:
    info = put(app, "south||ct 64|ct1", 1)

    def made(**options: Any) -> dict[str, tuple[str, str]]:
        done = app.batch_infer(app.batch_request("segmentation", "all", options))
        said = {key: done[study.series]["params"] for key, study in studies.items()}
        return {key: (p["adapter"], p["site_rule"]) for key, p in said.items()}

    assert made() == {
        "a": ("base", "none"), "b": (info.name, "scanner"), "removed": ("base", "none"),
    }  # fmt: skip
    assert set(made(site="south||ct 64|ct1").values()) == {(info.name, "override")}
    assert set(made(site="none").values()) == {("base", "override")}
    with pytest.raises(NotFoundError, match="no adapter in service"):
        app.batch_request("segmentation", "all", {"site": "elsewhere"})
    with pytest.raises(InvalidInputError, match="name one site"):
        app.batch_request("segmentation", "all", {"site": 5})


@pytest.mark.parametrize(
    ("site", "words", "rule"),
    [
        ("b", (), "scanner"),
        ("a", (), "none"),
        ("removed", ("--site", "south||ct 64|ct1"), "override"),
        ("b", ("--site", "none"), "override"),
        ("b", ("--site", "base"), "override"),
    ],
)
def test_the_command_chooses_as_the_server_does(
    app: SegUnlearnApp,
    studies: dict[str, Study],
    tmp_path: Path,
    site: str,
    words: tuple[str, ...],
    rule: str,
) -> None:
    info = put(app, "south||ct 64|ct1", 1)
    series, home = tmp_path / "studies" / studies[site].series, tmp_path / "home"
    output = tmp_path / "mask.dcm"
    told = segment(series, "-o", output, "--home", home, *words)
    assert told.exit_code == 0, told.output
    said = json.loads(told.stdout)
    adapter = "base" if rule == "none" or words[1:] in (("none",), ("base",)) else info.name
    assert (said["adapter"], said["site_rule"]) == (adapter, rule)
    segmentation = pydicom.dcmread(output)
    algorithm = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert f"site adapter={adapter}" in str(algorithm.AlgorithmParameters)
    voxels = segmentation.pixel_array
    assert bool((voxels == 1).all()) == (adapter != "base")


def test_the_command_refuses_a_site_that_has_no_adapter(
    app: SegUnlearnApp, studies: dict[str, Study], tmp_path: Path
) -> None:
    output = tmp_path / "mask.nii.gz"
    series = tmp_path / "studies" / studies["b"].series
    told = segment(series, "-o", output, "--home", tmp_path / "home", "--site", "elsewhere")
    assert isinstance(told.exception, NotFoundError)
    assert not output.exists()


def test_the_command_gives_another_version_its_own_adapters(
    app: SegUnlearnApp, studies: dict[str, Study], tmp_path: Path
) -> None:
    info, home = put(app, "south||ct 64|ct1", 1), tmp_path / "home"
    publish_tiny(home, seed=2)
    series = tmp_path / "studies" / studies["b"].series
    for words, adapter in ((("--version", "v0001"), info.name), ((), "base")):
        told = segment(series, "-o", tmp_path / "mask.nii.gz", "--home", home, *words)
        assert json.loads(told.stdout)["adapter"] == adapter


def segment(*words: object) -> Any:
    """``segunlearn infer`` in this process."""
    return CliRunner().invoke(command_line, ["infer", *map(str, words), "--json"])


def test_clients_are_offered_the_sites_in_service(app: SegUnlearnApp) -> None:
    assert app.info()["models"]["segmentation"]["config"] == {"site": ["auto", "base"]}
    put(app, "south||ct 64|ct1", 1)
    offered = app.info()["models"]["segmentation"]["config"]["site"]
    assert offered == ["auto", "base", "south||ct 64|ct1"]


def test_one_site_that_cannot_be_read_stops_no_other(
    app: SegUnlearnApp, studies: dict[str, Study]
) -> None:
    """Each inference asks which options there are."""
    info = put(app, "south||ct 64|ct1", 1)
    damaged = put(app, "north||ct 64|ct1", 2)
    (damaged.path / "about.json").write_text("{")
    offered = app.info()["models"]["segmentation"]["config"]["site"]
    assert offered == ["auto", "base", "south||ct 64|ct1"]
    assert infer(app, studies["b"].series)[1]["adapter"] == info.name
    with pytest.raises(IntegrityError, match=damaged.name):
        infer(app, studies["a"].series)


def test_networks_stay_loaded_but_not_all_of_them(app: SegUnlearnApp) -> None:
    info = put(app, "south||ct 64|ct1", 1)
    base = app.model.segmenter()
    first = app.model.adapted(*base, info)
    assert app.model.adapted(*base, info) is first
    assert first is not base[1]
    for number in range(models.KEPT_SITES):
        app.model.adapted(*base, put(app, f"site {number}|||", 2, 50.0 + number))
    assert len(app.model._adapted) == models.KEPT_SITES
    assert app.model.adapted(*base, info) is not first


def test_activation_is_quick(app: SegUnlearnApp) -> None:
    """Moving the pointer and making the network ready; the benchmark's figure is in the docs."""
    info = put(app, "south||ct 64|ct1", 1)
    base = app.model.segmenter()
    times = []
    for _ in range(5):
        app.model._adapted.clear()
        started = time.process_time()
        app.model.adapters.activate(info.site, info.version, base[0])
        app.model.adapted(*base, info)
        times.append(time.process_time() - started)
    assert min(times) < 0.1
