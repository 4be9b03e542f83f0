"""``segunlearn meta-train``: one run, one ledger row, one version with its meta model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from app_sources import publish_tiny, put_held_out
from command_line import segunlearn
from segunlearn import training
from segunlearn.adaptation import AdaptSettings, adapt, read_meta_model
from segunlearn.app import locks, training_run
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.cases import People, cases_from_folder
from segunlearn.errors import CancelledError, IntegrityError
from segunlearn.networks import ModelConfig, load_weights
from segunlearn.records.versions import VersionRegistry, file_sha256
from segunlearn.unlearning.sets import studies_of
from segunlearn.volumes import Volume, read_volume, write_volume
from tiny_training import model_config, write_cases

PEOPLE = ("--person-regex", "^(.....)")


def no_training(*_: object, **__: object) -> NoReturn:
    pytest.fail("it trains, for hours, what can never succeed")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sites")
    for site in ("north", "south"):
        write_cases(root / site, 3)
        for path in sorted((root / site).rglob("*.nii.gz")):
            path.rename(path.with_name(site[0] + path.name))
    return root


def test_a_meta_training_is_a_version_that_can_be_adapted_and_a_row_of_all_it_saw(
    sites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (
        "--data", sites, "--home", tmp_path, *PEOPLE, "--labels", "ball,cube", "--recipe", "sample",
        "--epochs", 1, "--iterations", 1, "--inner-steps", 2, "--device", "cpu", "--json",
    )  # fmt: skip
    assert segunlearn(monkeypatch, "meta-train", *words) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    home = Home(tmp_path)

    version = VersionRegistry(home.model("segmentation")).active()
    assert version is not None
    assert version.version == told["version"]
    assert told["meta_model"]["methods"] == ["generator+maml", "generator", "generator+steps"]
    assert told["meta_model"]["sites"] == 2
    assert [w[:28] for w in told["warnings"]] == ["assumed MR for all 6 images:"]
    assert told["meta_model"]["sha256"] == file_sha256(version.path / "meta.safetensors")
    row = next(iter(Records(home, "").ledger.rows()))
    assert row.version_sha256 == version.sha256
    assert row.cases_count == 6, "everyone who shaped the joint weights or the meta model"
    assert row.parameters["meta"]["iterations"] == 1
    assert row.parameters["meta_model"] == told["meta_model"]
    assert not any((tmp_path / "runs").iterdir()), "no checkpoint stays"

    meta = read_meta_model(version)
    assert meta is not None
    config = ModelConfig.from_json(version.config)
    network = load_weights(version.weights, config, version.sha256)
    file = version.path / "meta.safetensors"
    whole = file.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 1
        file.write_bytes(changed)
        with pytest.raises(IntegrityError, match="changed after it was published"):
            read_meta_model(version)
    file.write_bytes(whole)
    support = studies_of(cases_from_folder(sites / "north", People("^(.....)"))[:1], config)
    adapted = adapt(network, meta, support, config, AdaptSettings("generator+maml", 1))
    assert adapted.structures == ("ball", "cube")
    with pytest.raises(IntegrityError, match="made for weights"):
        read_meta_model(replace(version, sha256="0" * 64))


def test_from_the_active_version_whom_it_kept_out_stays_out(
    sites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = publish_tiny(tmp_path, config=model_config())
    put_held_out(first, tmp_path, "np001")
    words = (
        "--data", sites, "--home", tmp_path, *PEOPLE, "--recipe", "sample", "--epochs", 1,
        "--iterations", 1, "--inner-steps", 1, "--device", "cpu", "--from-active", "--json",
    )  # fmt: skip
    assert segunlearn(monkeypatch, "meta-train", *words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["held_out_people"] == 1
    assert "1 of the 1 people whom v0001 kept out" in " ".join(err.split())
    registry, records = (
        VersionRegistry(tmp_path / "models" / "segmentation"),
        Records(Home(tmp_path)),
    )
    second = registry.active()
    assert second is not None
    people = {c.person for c in records.ledger.cases_of(second.run_id)}
    assert len(people) == 5
    assert "np001" not in people
    kept_out = registry.get("v0001").details["held_out_pseudonyms"]
    assert second.details["held_out_pseudonyms"] == kept_out


def test_a_version_that_was_published_meanwhile_is_not_passed_over(
    sites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = model_config()
    publish_tiny(tmp_path, config=config)

    @contextmanager
    def after_another(*_: object) -> Iterator[None]:
        publish_tiny(tmp_path, 2, config)
        yield

    monkeypatch.setattr(locks, "training_lock", after_another)
    monkeypatch.setattr(training_run, "train", no_training)
    words = ("--data", sites, "--home", tmp_path, *PEOPLE, "--from-active")
    assert segunlearn(monkeypatch, "meta-train", *words) == 2
    assert "changed from v0001 to v0002 before this training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "give either --data or --studies"),
        (("--studies", "http://127.0.0.1:1/"), "--studies needs --from-active"),
        (("--data", "EMPTY"), "no folder of a site in it"),
        (("--data", "SITES", "--person-regex", "^(.)"), "none of 2 sites has 2 people"),
        (("--data", "TWO", *PEOPLE), "none of 1 sites has 2 people"),  # one of them validates
        (("--data", "ONE", *PEOPLE, "--no-virtual-sites"), "one site without virtual sites"),
    ],
)
def test_what_cannot_be_meta_learned_is_refused_before_any_training(
    sites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    reason: str,
) -> None:
    (tmp_path / "empty").mkdir()
    write_cases(tmp_path / "two" / "north", 2)
    write_cases(tmp_path / "one" / "north", 3)
    folders = {"EMPTY": "empty", "TWO": "two", "ONE": "one"}
    places = {"SITES": str(sites), **{k: str(tmp_path / v) for k, v in folders.items()}}
    given = [places.get(word, word) for word in words]
    monkeypatch.setattr(training_run, "train", no_training)
    home = ("--home", tmp_path / "home")
    code = segunlearn(monkeypatch, "meta-train", *given, *home, "--labels", "ball,cube")
    assert code == 2
    assert reason in capsys.readouterr().err


def test_people_without_a_structure_do_not_count(
    sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their labels are only read with the cases; still it is told before the first epoch."""
    shutil.copytree(sites, tmp_path / "sites")
    labels = sorted((tmp_path / "sites").glob("*/labels/*[12]_0.nii.gz"))
    assert len(labels) == 4, "one person of each site keeps its structures"
    for path in labels:
        label = read_volume(path, label=True)
        write_volume(Volume(label.array * 0, label.affine), path)
    monkeypatch.setattr(training.Trainer, "run", no_training)
    words = ("--data", tmp_path / "sites", "--home", tmp_path / "home", *PEOPLE, "--recipe",
             "sample", "--labels", "ball,cube", "--device", "cpu")  # fmt: skip
    assert segunlearn(monkeypatch, "meta-train", *words) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "no site has 2 people with a structure" in err
    assert "The 2 sites have [1, 1] such people" in err


def test_which_modality_was_assumed_is_told(
    sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> NoReturn:
        raise CancelledError("enough")

    words = ("--data", sites, "--home", tmp_path, *PEOPLE, "--recipe", "sample", "--labels",
             "ball,cube", "--device", "cpu")  # fmt: skip
    monkeypatch.setattr(training.Trainer, "run", stop)
    assert segunlearn(monkeypatch, "meta-train", *words) == 130
    said = "warning: assumed MR for all 6 images"
    assert " ".join(capsys.readouterr().err.split()).count(said) == 1
    assert segunlearn(monkeypatch, "meta-train", *words, "--modality", "MR") == 130
    assert "assumed" not in capsys.readouterr().err


def test_files_of_one_name_at_two_sites_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for site in ("north", "south"):
        write_cases(tmp_path / site, 1)
    words = ("--data", tmp_path, "--home", tmp_path / "home")
    assert segunlearn(monkeypatch, "meta-train", *words) == 2
    assert "two sites hold a file of the same name" in capsys.readouterr().err
