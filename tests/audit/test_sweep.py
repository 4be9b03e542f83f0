"""Every place that may hold a forgotten study is looked at, and none is printed by name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from segunlearn.audit import sweep as audit_sweep
from segunlearn.audit.home_files import HomeFiles, ShownNames
from segunlearn.audit.sweep import Place, sweep
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import InvalidInputError
from segunlearn.records.versions import VersionRegistry, file_sha256

UID = "1.2.826.0.1.77"
PSEUDONYMS = Pseudonyms(bytes(32))
hidden = PSEUDONYMS.of
STAGING = ".staging-" + "0" * 32
RUN = "0123456789abcdef" * 2


def put(path: Path, content: bytes = b"x") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def look(home: Path, saw: set[str] = frozenset(), without: set[str] = frozenset()) -> list[Place]:
    return sweep(home, {UID}, saw, PSEUDONYMS, without=without)


def states(places: list[Place]) -> dict[str, str]:
    return {p.where: p.state for p in places}


def test_an_empty_home_holds_nothing(tmp_path: Path) -> None:
    places = look(tmp_path)
    assert {p.state for p in places} == {"absent"}
    kinds = {
        "version",
        "weights",
        "image cache",
        "label",
        "archive index",
        "training log",
        "export",
        "generator",
        "site adapter",
        "image",
        "note",
        "training cache",
        "upload",
        "audit report",
    }
    assert {p.kind for p in places} == kinds


def test_every_version_is_told_by_the_digest_of_its_weights(tmp_path: Path) -> None:
    registry = VersionRegistry(tmp_path / "models" / "segmentation")
    digests = []
    for name in (b"saw it", b"never", b"unlearned", b"exchanged", b"destroyed"):
        put(tmp_path / "w.safetensors", name)
        info = registry.publish(
            tmp_path / "w.safetensors", {}, parent_sha256=None, run_id=name.hex()
        )
        digests.append(info.sha256)
    (tmp_path / "w.safetensors").unlink()
    versions = tmp_path / "models" / "segmentation" / "versions"
    put(versions / "v0004" / "weights.safetensors", b"something else")
    (versions / "v0005" / "weights.safetensors").unlink()
    places = look(tmp_path, {digests[0], digests[4]}, {digests[2]})
    found = {p.where[-5:]: p.state for p in places if p.kind == "version"}
    assert found == {
        "v0001": "open",
        "v0002": "absent",
        "v0003": "replaced",
        "v0004": "open",
        "v0005": "absent",
    }


def test_sealed_weights_are_not_called_destroyed(tmp_path: Path) -> None:
    registry = VersionRegistry(tmp_path / "models" / "segmentation")
    for name in (b"saw it", b"saw it too", b"unlearned"):
        put(tmp_path / "w.safetensors", name)
        registry.publish(tmp_path / "w.safetensors", {}, parent_sha256=None, run_id=name.hex())
    for version in ("v0001", "v0002"):
        registry.retire(version)
        registry.destroy_weights(version, sealed=version == "v0002")
    places = {p.where[-5:]: p for p in look(tmp_path) if p.kind == "version"}
    assert (places["v0001"].state, places["v0002"].state) == ("absent", "sealed")
    assert "destroyed" in places["v0001"].words
    assert "deposit" in places["v0002"].words


def test_leftovers_are_open_until_they_are_gone(tmp_path: Path) -> None:
    put(tmp_path / "runs" / RUN / "checkpoint" / "optimiser.safetensors")
    put(tmp_path / "runs" / RUN / "best.pt")
    put(tmp_path / "deposits" / RUN / "v0001.sealed")
    put(tmp_path / "cache" / UID / "image.nii.gz")
    put(tmp_path / "cache" / "1.2.999" / "image.nii.gz")
    put(tmp_path / "cache" / "00003-image.npy")
    put(tmp_path / "labels" / "final" / f"{UID}.nii.gz")
    put(tmp_path / "archive-index" / "index.db")
    put(tmp_path / "tb" / "events.out.tfevents.1.host")
    put(tmp_path / "exports" / "model.onnx")
    places = look(tmp_path)
    found = states([p for p in places if p.state != "absent"])
    pseudonym = PSEUDONYMS.of(UID)
    assert found == {
        f"runs/{RUN}/checkpoint/optimiser.safetensors": "open",
        f"runs/{RUN}/best.pt": "open",
        f"deposits/{RUN}/v0001.sealed": "sealed",
        f"cache/{pseudonym}/image.nii.gz": "open",
        "cache/00003-image.npy": "open",
        f"labels/final/{pseudonym}.nii.gz": "open",
        "archive-index/index.db": "open",
        f"{hidden('tb')}/{hidden('events.out.tfevents.1.host')}": "open",
        "exports/model.onnx": "open",
    }
    assert UID not in "".join(p.where + p.words for p in places)
    assert [p.state for p in places] == sorted(
        (p.state for p in places), key=["open", "sealed", "replaced", "absent"].index
    )


def test_copies_that_are_not_in_the_cache_are_open(tmp_path: Path) -> None:
    put(tmp_path / "images" / f"{UID}.nii.gz")
    put(tmp_path / "images" / "1.2.999.nii.gz")
    put(tmp_path / "runs" / RUN / "cache" / "00000-image.npy")
    put(tmp_path / "sessions" / "s1" / "image.nii.gz")
    put(tmp_path / "sessions" / "s1" / "meta.info")
    put(tmp_path / "sessions" / "s2" / "00000.dcm")
    put(tmp_path / "tmp" / "upload-x.nrrd")
    put(tmp_path / "infos" / "images" / f"{UID}.json")
    for audit, about in (
        ("a" * 32, '{"pictures": true}'),
        ("b" * 32, '{"pictures": false}'),
        ("c" * 32, "7"),
    ):
        put(tmp_path / "audits" / audit / "audit.json", f'{{"about": {about}}}'.encode())
        put(tmp_path / "audits" / audit / "report.html")
    pseudonym = PSEUDONYMS.of(UID)
    assert states([p for p in look(tmp_path) if p.state != "absent"]) == {
        f"images/{pseudonym}.nii.gz": "open",
        f"runs/{RUN}/cache/00000-image.npy": "open",
        f"sessions/{hidden('s1')}/image.nii.gz": "open",
        f"sessions/{hidden('s2')}/{hidden('00000')}.dcm": "open",
        f"tmp/{hidden('upload-x')}.nrrd": "open",
        f"infos/images/{pseudonym}.json": "open",
        f"audits/{'a' * 32}/report.html": "open",
        f"audits/{'c' * 32}/report.html": "open",  # nobody can say
    }


@pytest.mark.parametrize(
    ("mine", "base", "state"),
    [
        (True, "without", "open"),  # it learned from the studies itself
        (False, "without", "replaced"),
        (False, "saw", "open"),
        (False, "neither", "absent"),
        (None, "without", "open"),  # nobody can say
    ],
)
def test_a_site_adapter_is_told_by_its_support_and_its_base(
    tmp_path: Path, mine: bool | None, base: str, state: str
) -> None:
    folder = tmp_path / "sites" / "segmentation" / "a0001"
    digest = put(folder / "adapter.safetensors")
    if mine is not None:
        support = [PSEUDONYMS.of(UID if mine else "1.2.999")]
        put(
            folder / "about.json",
            json.dumps({"base": base, "about": {"support": support}}).encode(),
        )
    found = [p for p in look(tmp_path, {"saw"}, {"without"}) if p.kind == "site adapter"]
    assert [p.state for p in found] == [state]
    if state == "absent":  # unless it was itself made from them
        found = [p for p in look(tmp_path, {digest}) if p.kind == "site adapter"]
        assert [p.state for p in found] == ["open"]


def test_a_generator_is_told_by_the_digest_of_its_weights(tmp_path: Path) -> None:
    registry = VersionRegistry(tmp_path / "replay" / "segmentation")
    digests = []
    for name in (b"saw it", b"never", b"exchanged", b"destroyed", b"torn", b"torn and destroyed"):
        put(tmp_path / "w.safetensors", name)
        info = registry.publish(
            tmp_path / "w.safetensors", {}, parent_sha256=None, run_id=name.hex()
        )
        digests.append(info.sha256)
    (tmp_path / "w.safetensors").unlink()
    versions = registry.root / "versions"
    put(versions / "v0003" / "weights.safetensors", b"something else")
    for name in ("v0004", "v0006"):
        (versions / name / "weights.safetensors").unlink()
    for name in ("v0005", "v0006"):
        put(versions / name / "manifest.json", b"{")
    places = look(tmp_path, {digests[0], digests[3]})
    found = {p.where[-5:]: p.state for p in places if p.kind == "generator"}
    assert found == {
        "v0001": "open",
        "v0002": "absent",
        "v0003": "open",
        "v0004": "absent",
        "v0005": "open",  # nobody can say
        "v0006": "absent",
    }


def test_what_a_killed_publish_left_is_open(tmp_path: Path) -> None:
    """Nobody's version: no record says whom these weights and pictures know."""
    for folder in ("models", "replay"):
        put(tmp_path / "w.safetensors", b"never")
        registry = VersionRegistry(tmp_path / folder / "segmentation")
        registry.publish(tmp_path / "w.safetensors", {}, parent_sha256=None, run_id="a")
        put(tmp_path / folder / "segmentation" / "versions" / STAGING / "weights.safetensors")
        put(tmp_path / folder / "segmentation" / "versions" / "v0001" / "spare.safetensors")
    (tmp_path / "w.safetensors").unlink()
    put(tmp_path / "replay" / "segmentation" / "spare.pt")
    put(tmp_path / "replay" / "segmentation" / "versions" / "v0001" / ".report.html.01.part")
    registry.get("v0001").weights.unlink()
    assert states([p for p in look(tmp_path) if p.state != "absent"]) == {
        f"models/segmentation/versions/{STAGING}/weights.safetensors": "open",
        f"models/segmentation/versions/v0001/{hidden('spare')}.safetensors": "open",
        f"replay/segmentation/{hidden('spare')}.pt": "open",
        f"replay/segmentation/versions/{STAGING}/weights.safetensors": "open",
        f"replay/segmentation/versions/v0001/{hidden('spare')}.safetensors": "open",
        "replay/segmentation/versions/v0001": "open",  # pictures
    }


def test_names_are_found_and_hidden_whole(tmp_path: Path) -> None:
    """A series' UID often begins with its study's; a cache may carry a pseudonym instead."""
    series = f"{UID}.1"
    pseudonym = PSEUDONYMS.of(series)
    put(tmp_path / "cache" / f"{series}.nii.gz")
    put(tmp_path / "labels" / f"{pseudonym}.nii.gz")
    places = sweep(tmp_path, [UID, series], set(), PSEUDONYMS)
    assert states([p for p in places if p.state != "absent"]) == {
        f"cache/{pseudonym}.nii.gz": "open",
        f"labels/{hidden(pseudonym)}.nii.gz": "open",
    }


def test_nobody_is_named_and_every_file_is_found_again(tmp_path: Path) -> None:
    """Other patients stand in names of files, too, and short PatientIDs in names of folders."""
    VersionRegistry(tmp_path / "replay" / "head")
    put(tmp_path / "replay" / "head" / "versions" / "v0001" / "weights.safetensors")
    written = [
        "exports/Mueller_Hans_4712.onnx",
        "Mueller Hans/4712.pt",
        "runs/4712/weights.safetensors",
        "runs/4712.npy",
        f"runs/{RUN}/47.nii.pt",
        "sessions/4712/00471.dcm",
        "tmp/Mueller.nii.gz",
        "models/Mueller/v0001/4712.bin",
        "sites/head/4712/v0001/adapter.safetensors",
        "deposits/4712/Mueller.sealed",
        "audits/4712/report.html",
        f"cache/images/{UID}-Mueller.nii.gz",
        f"labels/4712/{UID}.json.Mueller",
        "logs/events.out.tfevents.1.Mueller",
        "mlruns/4712/Mueller",
        "archive-index/Mueller.db",
        os.fsdecode(b"M\xfceller/Mueller.onnx"),  # not UTF-8
    ]
    for name in written:
        put(tmp_path / name)
    shown = [p.where for p in look(tmp_path) if p.state in ("open", "sealed")]
    text = json.dumps([p.to_json() for p in look(tmp_path)])
    assert not [n for n in ("Mueller", "Hans", "4712", "/47", "00471", UID) if n in text]
    names = ShownNames(HomeFiles(tmp_path), PSEUDONYMS)
    found = {str(f.relative_to(tmp_path)) for where in shown for f in names.find(where)}
    assert found == {*written, "replay/head/versions/v0001"}
    assert f"exports/{hidden('Mueller_Hans_4712')}.onnx" in shown
    assert f"sites/head/{hidden('4712')}/{hidden('v0001')}/adapter.safetensors" in shown
    assert ShownNames(HomeFiles(tmp_path), Pseudonyms(b"k" * 32)).find(shown[0]) == []


def test_only_published_versions_are_no_loose_weights(tmp_path: Path) -> None:
    saw, without = (
        put(tmp_path / "runs" / "versions" / f"{name}.pt", name.encode()) for name in "ab"
    )
    put(tmp_path / "models" / "segmentation" / "spare.pt", b"c")
    places = [p for p in look(tmp_path, {saw}, {without}) if p.kind == "weights"]
    assert states(places) == {
        f"runs/versions/{hidden('a')}.pt": "open",
        f"runs/versions/{hidden('b')}.pt": "replaced",
        f"models/{hidden('segmentation')}/{hidden('spare')}.pt": "open",
    }
    words = {p.where: p.words for p in places}
    assert "that saw the studies" in words[f"runs/versions/{hidden('a')}.pt"]
    assert "of unknown origin" in words[f"models/{hidden('segmentation')}/{hidden('spare')}.pt"]


@pytest.mark.parametrize(("named", "state"), [(True, "open"), (False, "absent"), (None, "open")])
def test_an_index_is_open_unless_it_names_none_of_them(
    tmp_path: Path, named: bool | None, state: str
) -> None:
    put(tmp_path / "archive-index" / "index.db")
    holds = None if named is None else lambda path, identifiers: named and UID in identifiers
    places = sweep(tmp_path, {UID}, set(), PSEUDONYMS, index_holds=holds)
    assert [p.state for p in places if p.kind == "archive index"] == [state]


def test_a_cleaned_home_is_clean(tmp_path: Path) -> None:
    put(tmp_path / "archive-index" / "index.db")
    put(tmp_path / "cache" / "1.2.999" / "image.nii.gz")
    digest = put(tmp_path / "runs" / "r2" / "best.safetensors", b"new")
    places = sweep(
        tmp_path, {UID}, set(), PSEUDONYMS, without={digest}, index_holds=lambda path, ids: False
    )
    assert {p.state for p in places} == {"absent", "replaced"}


def test_what_goes_while_it_is_looked_at_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training replaces its checkpoint, or ends and removes its folder."""
    registry = VersionRegistry(tmp_path / "models" / "segmentation")
    generators = VersionRegistry(tmp_path / "replay" / "segmentation")
    for found in (registry, generators):
        put(tmp_path / "w.safetensors", b"saw it")
        found.publish(tmp_path / "w.safetensors", {}, parent_sha256=None, run_id="a")
        (tmp_path / "w.safetensors").unlink()
    put(tmp_path / "runs" / "r1" / "state-1.safetensors")
    put(tmp_path / "runs" / "r2" / "best.pt")
    put(tmp_path / "sites" / "a" / "adapter.safetensors")
    real = os.scandir

    def scandir(folder: Any) -> Any:
        if str(folder).endswith("r2"):
            raise FileNotFoundError(folder)
        return real(folder)

    def gone(path: Path) -> str:
        path.unlink()
        return file_sha256(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(audit_sweep, "file_sha256", gone)
    assert {p.state for p in look(tmp_path)} == {"absent"}


def test_what_lies_behind_a_link_is_found(tmp_path: Path) -> None:
    """A big disk that holds the runs; a link back into the home ends there."""
    home, disk = tmp_path / "home", tmp_path / "disk"
    put(disk / RUN / "checkpoint.pt")
    put(disk / RUN / "cache" / "00000-image.npy")
    put(disk / RUN / "model.onnx")
    put(tmp_path / "elsewhere.pt")
    put(home / "cache" / f"{UID}.nii.gz")
    (home / "runs").symlink_to(disk)
    (disk / RUN / "last.pt").symlink_to(tmp_path / "elsewhere.pt")
    (disk / RUN / "glast.pt").symlink_to(tmp_path / "gone")
    (disk / RUN / "up").symlink_to(disk)
    (home / "again").symlink_to(home)
    assert states([p for p in look(home) if p.state != "absent"]) == {
        f"runs/{RUN}/checkpoint.pt": "open",
        f"runs/{RUN}/cache/00000-image.npy": "open",
        f"runs/{RUN}/model.onnx": "open",
        f"runs/{RUN}/{hidden('last')}.pt": "open",
        f"cache/{PSEUDONYMS.of(UID)}.nii.gz": "open",
    }


@pytest.mark.parametrize("closed", ["runs", "models", "replay", "audits", "cache", "tmp"])
def test_what_cannot_be_looked_at_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    put(tmp_path / "exports" / "model.onnx")
    (tmp_path / closed).mkdir()
    real = {name: getattr(os, name) for name in ("scandir", "listdir")}

    def refusing(name: str) -> Any:
        def call(folder: Any) -> Any:
            if Path(folder) == tmp_path / closed:
                raise PermissionError(13, "Permission denied", str(folder))
            return real[name](folder)

        return call

    for name in real:
        monkeypatch.setattr(os, name, refusing(name))
    found = [p for p in look(tmp_path) if p.state == "open"]
    assert [(p.kind, p.where) for p in found] == [
        ("export", "exports/model.onnx"),
        ("folder", closed),
    ]
    assert "could not be looked at (Permission denied)" in found[1].words


def test_weights_that_cannot_be_read_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "runs" / RUN / "best.pt")

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(audit_sweep, "file_sha256", refuse)
    assert states([p for p in look(tmp_path) if p.state != "absent"]) == {
        f"runs/{RUN}/best.pt": "open"
    }


def test_nothing_to_look_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="identifiers"):
        sweep(tmp_path, [], set(), PSEUDONYMS)
    with pytest.raises(InvalidInputError, match="identifiers"):
        sweep(tmp_path, [""], set(), PSEUDONYMS)
    with pytest.raises(InvalidInputError, match="no such home"):
        sweep(tmp_path / "no", [UID], set(), PSEUDONYMS)
