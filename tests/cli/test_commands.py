"""The command line from training to a mask, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pydicom
import pytest

from segunlearn import cli, inference
from segunlearn.app.locks import training_lock
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.training_run import TrainingRun
from segunlearn.dicom.segmentation import read_segmentation
from segunlearn.errors import ConflictError, InvalidInputError
from segunlearn.records.versions import VersionRegistry
from segunlearn.volumes import Volume, read_volume, write_volume
from tiny_training import arrays, write_cases

PEOPLE = ("--person-regex", "^(p...)")
TRAIN = (*PEOPLE, "--labels", "ball,cube", "--recipe", "sample", "--epochs", "1")


class Shell:
    """Runs ``segunlearn`` as its script does, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["segunlearn", *map(str, words)])
        self._monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        return code, out, err

    def json(self, *words: object) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    def refused(self, *words: object) -> str:
        """Error of a command: one sentence on stderr, nothing on stdout, exit code 2."""
        code, out, err = self(*words)
        assert code == 2, (code, err)
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_cases(folder, 5)
    return folder


@pytest.fixture(scope="module")
def home(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one trained version that kept one person out."""
    folder = tmp_path_factory.mktemp("home")
    words = ["train", "--data", data, "--home", folder, *TRAIN, "--holdout", "0.2", "--json"]
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["segunlearn", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert (end.value.code, err.getvalue()) == (0, "")
    trained = json.loads(out.getvalue())
    assert trained["version"] == "v0001"
    assert trained["held_out_people"] == 1
    assert trained["train_cases"] + trained["val_cases"] == 4
    assert len(trained["curve"]) == 1
    return folder


def test_info_lists_the_version(shell: Shell, home: Path) -> None:
    (version,) = shell.json("info", "--home", home)["models"]["segmentation"]
    assert version["labels"] == ["ball", "cube"]
    assert version["state"] == "active"
    shaped = shell.json("ledger", "studies", "v0001", "--home", home)
    assert shaped == shell.json("ledger", "studies", version["sha256"], "--home", home)
    assert len(shaped) == 4
    code, out, _ = shell("info", "--home", home)
    assert code == 0
    assert "v0001" in out
    assert "ball" in out


def test_evaluate_measures_the_people_kept_out(shell: Shell, home: Path, data: Path) -> None:
    words = ("evaluate", "--data", data, "--home", home, *PEOPLE)
    active = VersionRegistry(home / "models" / "segmentation").active()
    assert active is not None
    found = shell.json(*words, "--held-out")
    (kept_out,) = found["per_person"]
    pseudonyms = Records(Home(home)).pseudonyms
    assert active.details["held_out_pseudonyms"] == [pseudonyms.of(kept_out)]
    assert set(found["per_label"]) == {"ball", "cube"}
    assert found["sha256"] == active.sha256
    row = Records(Home(home)).ledger.row(active.run_id)
    seen = {c.person for c in Records(Home(home)).ledger.cases_of(row.run_id)}
    assert not seen & set(found["per_person"])
    assert len(shell.json(*words)["per_person"]) == 5
    code, out, _ = shell(*words, "--held-out")
    assert code == 0
    assert "HD95" in out


def test_a_manifest_names_nobody(home: Path, data: Path) -> None:
    (manifest,) = (home / "models").rglob("manifest.json")
    people = {path.name.partition("_")[0] for path in (data / "images").iterdir()}
    assert len(people) == 5
    assert not [person for person in people if person in manifest.read_text()]


def test_with_another_key_nobody_is_found(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    (copy / "site.key").write_bytes(bytes(32))
    words = ("--data", data, "--home", copy, *PEOPLE)
    assert "site.key" in shell.refused("evaluate", *words, "--held-out")
    # or it would train on them
    assert "site.key" in shell.refused("train", *words, "--recipe", "sample", "--from-active")


def test_manifests_that_name_people_are_read_still(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    manifest = copy / "models" / "segmentation" / "versions" / "v0001" / "manifest.json"
    known = json.loads(manifest.read_text())
    known["details"] = {"held_out": ["p002"]}
    manifest.write_text(json.dumps(known))
    words = ("--data", data, "--home", copy, *PEOPLE)
    assert list(shell.json("evaluate", *words, "--held-out")["per_person"]) == ["p002"]
    shell.json("train", *words, "--recipe", "sample", "--epochs", "1", "--from-active")
    second = VersionRegistry(copy / "models" / "segmentation").get("v0002")
    pseudonym = Records(Home(copy)).pseudonyms.of("p002")
    assert second.details["held_out_pseudonyms"] == [pseudonym]
    assert "p002" not in (second.path / "manifest.json").read_text()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_infer_writes_a_mask_on_the_images_grid(
    shell: Shell, home: Path, tmp_path: Path, ending: str
) -> None:
    image, _ = arrays(77)
    turned = image.affine @ np.array([[0, -1, 0, 0], [1, 0, 0, 5], [0, 0, -1, 9], [0, 0, 0, 1]])
    write_volume(Volume(image.array, turned), tmp_path / "image.nrrd")
    output = tmp_path / "new" / f"mask{ending}"
    said = shell.json("infer", tmp_path / "image.nrrd", "-o", output, "--home", home)
    mask = read_volume(output, label=True)
    assert mask.same_grid(Volume(image.array, turned))
    millilitres = {k: float((mask.array == v).sum() * 12 / 1000) for k, v in said["labels"].items()}
    assert said["millilitres"] == pytest.approx(millilitres)
    assert set(said["seconds"]) == {"pre", "network", "post"}


def test_brackets_in_a_name_are_only_brackets(shell: Shell, home: Path, tmp_path: Path) -> None:
    """They style text where people write them on purpose; a name is shown as it is."""
    image, _ = arrays(77)
    write_volume(image, tmp_path / "image.nrrd")
    output = tmp_path / "kidney [left].nii.gz"
    words = ("infer", tmp_path / "image.nrrd", "-o", output, "--home", home)
    code, _, err = shell(*words, "--modality", "MR")
    assert (code, "kidney [left].nii.gz: ball" in err) == (0, True), err


@pytest.mark.parametrize(
    ("low", "assumed", "other"), [(0, "MR", "CT"), (1, "MR", "CT"), (3, "CT", "MR")]
)
def test_infer_says_which_modality_it_assumed_and_why(
    shell: Shell, home: Path, tmp_path: Path, low: int, assumed: str, other: str
) -> None:
    array = np.zeros((20, 10, 1), np.float32)  # 200 voxels, of which some are signed noise
    array.flat[:low] = -101
    write_volume(Volume(array, np.eye(4)), tmp_path / "image.nii.gz")
    words = ("infer", tmp_path / "image.nii.gz", "-o", tmp_path / "m.nii.gz", "--home", home)
    said = shell.json(*words)
    assert said["modality"] == assumed
    (warning,) = said["warnings"]
    assert f"assumed {assumed}" in warning
    assert f"{low / 2:.1f} % of the voxels lie below -100" in warning
    assert f"--modality {other}" in warning
    code, out, err = shell(*words)
    assert (code, out) == (0, "")
    assert f"warning: {warning}" in err.replace("\n", " ")
    named = shell.json(*words, "--modality", "MR")
    assert (named["modality"], named["warnings"]) == ("MR", [])
    ct_folder(tmp_path / "series")
    words = ("infer", tmp_path / "series", "-o", tmp_path / "n.nii.gz", "--home", home)
    known = shell.json(*words)
    assert (known["modality"], known["warnings"]) == ("CT", [])


def test_train_says_which_modality_it_assumed_and_why(
    shell: Shell, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    signed = tmp_path / "data" / "images" / "p001_0.nii.gz"
    image = read_volume(signed)
    write_volume(Volume(image.array - 150, image.affine), signed)
    words = ("train", "--data", tmp_path / "data", *TRAIN)
    code, _, err = shell(*words, "--home", tmp_path / "a")
    assert code == 0
    err = " ".join(err.split())
    assert "warning: assumed CT for 1 of 5 images" in err
    assert "MR for 4" in err
    assert "--modality" in err
    (warning,) = shell.json(*words, "--home", tmp_path / "b")["warnings"]
    assert warning in err
    assert shell.json(*words, "--home", tmp_path / "c", "--modality", "MR")["warnings"] == []


def test_a_generator_is_made_with_a_warning_of_what_was_assumed(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(home, tmp_path / "home")
    words = ("--data", data, "--home", tmp_path / "home", *PEOPLE)
    quick = ("--steps", 2, "--device", "cpu")
    (warning,) = shell.json("replay", "train", *words, *quick, "--latent", 4)["warnings"]
    assert warning.startswith("assumed MR for all 4 images: ")
    code, _, err = shell("replay", "train", *words, *quick, "--latent", 4, "--seed", 1)
    assert (code, " ".join(err.split()).count(f"warning: {warning}")) == (0, 1)
    page, tags = tmp_path / "page.html", tmp_path / "tags.csv"
    code, _, err = shell("replay", "page", page, *words, "--samples", 0)
    assert (code, " ".join(err.split()).count(f"warning: {warning}")) == (0, 1)
    names = re.findall('data-image="([^"]+)"', page.read_text())
    rows = [f"{name},{'yes' if number % 2 else 'no'}" for number, name in enumerate(names)]
    tags.write_text("\n".join(["image,feature", *rows]))
    more = ("replay", "forget-feature", *words, *quick, "--tags", tags)
    assert shell.json(*more)["warnings"] == [warning]
    assert shell.json("replay", "train", *words, *quick, "--modality", "MR")["warnings"] == []


def test_images_without_a_label_map_are_named(shell: Shell, data: Path, tmp_path: Path) -> None:
    """A typing error in one file's name must not quietly cost a study."""
    shutil.copytree(data, tmp_path / "data")
    label = tmp_path / "data" / "labels" / "p001_0.nii.gz"
    label.rename(label.with_name("p001_0_seg.nii.gz"))
    words = ("train", "--data", tmp_path / "data", *TRAIN, "--modality", "MR")
    code, _, err = shell(*words, "--home", tmp_path / "a")
    assert code == 0
    assert "warning: 1 image has no label map" in err
    assert "1 label map has no image" in err
    trained = shell.json(*words[:-2], "--home", tmp_path / "b")  # told no modality
    left_out = trained["warnings"][:2]
    assert [w.split("(")[1] for w in left_out] == ["p001_0).", "p001_0_seg)."]
    assert trained["train_cases"] + trained["val_cases"] == 4
    words = ("evaluate", "--data", tmp_path / "data", *PEOPLE, "--home", tmp_path / "b")
    found = shell.json(*words, "--modality", "MR")
    assert found["warnings"] == left_out
    assert len(found["per_person"]) == 4
    found = shell.json(*words)
    assert found["warnings"][2:] == [
        "assumed MR for all 4 images: in none of them 1 % of the voxels lie below -100. If they "
        "are CT, say --modality CT."
    ]
    assert "warning: assumed MR for all 4 images" in shell(*words)[2]


def test_a_named_modality_stays_that_of_the_model(shell: Shell, data: Path, tmp_path: Path) -> None:
    """Whoever named it once, for the training, must not be undone by leaving it out later."""
    words = ("--data", data, "--home", tmp_path / "home", *PEOPLE)
    shell.json("train", *words, *TRAIN[2:], "--modality", "CT")
    named, silent = (shell.json("evaluate", *words, *more) for more in (("--modality", "CT"), ()))
    assert silent["warnings"] == []
    assert silent["cases"] == named["cases"]
    image, mask = data / "images" / "p001_0.nii.gz", tmp_path / "m.nii.gz"
    said = shell.json("infer", image, "-o", mask, "--home", tmp_path / "home")
    assert (said["modality"], said["warnings"]) == ("CT", [])


def ct_folder(folder: Path, series: int = 1) -> list[pydicom.Dataset]:
    """Write a series of pydicom's own CT slice at several positions; gives its instances."""
    from pydicom.data import get_testdata_file
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid(entropy_srcs=["series", str(series)])
    written = []
    for k in range(6):
        ds = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, z + 5 * k]
        ds.SeriesInstanceUID, ds.InstanceNumber = uid, k + 1
        ds.SOPInstanceUID = generate_uid(entropy_srcs=["image", str(series), str(k)])
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(folder / f"{series}-{k}.dcm", enforce_file_format=True)
        written.append(ds)
    return written


def test_infer_writes_a_dicom_seg(shell: Shell, home: Path, tmp_path: Path) -> None:
    source = ct_folder(tmp_path / "series")
    (tmp_path / "series" / "notes.txt").write_text("no DICOM")
    output = tmp_path / "seg.dcm"
    shell.json("infer", tmp_path / "series", "-o", output, "--home", home)
    shell.json("infer", tmp_path / "series", "-o", tmp_path / "m.nii.gz", "--home", home)
    dataset = pydicom.dcmread(output)
    label, names = read_segmentation(dataset, source)
    plain = read_volume(tmp_path / "m.nii.gz", label=True)
    assert label.same_grid(plain)
    assert np.array_equal(label.array, plain.array)
    assert set(names.values()) <= {"ball", "cube"}
    # a SEG beside the images does not make it two series
    shutil.copy(output, tmp_path / "series" / "seg.dcm")
    shell.json("infer", tmp_path / "series", "-o", tmp_path / "again.nii.gz", "--home", home)


def test_infer_refuses_a_damaged_image_of_the_series(
    shell: Shell, home: Path, tmp_path: Path
) -> None:
    """A slice that is passed over is a hole that nobody is told of."""
    words = ("infer", tmp_path / "series", "-o", tmp_path / "m.nii.gz", "--home", home)
    ct_folder(tmp_path / "series")
    last = tmp_path / "series" / "1-5.dcm"
    content, ds = last.read_bytes(), pydicom.dcmread(last)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    ds.save_as(last, enforce_file_format=True)
    deflated = last.read_bytes()
    for damaged in (content[: content.index(b"\x28\x00\x10\x00")], deflated[:-9000]):
        last.write_bytes(damaged)
        assert "1-5.dcm" in shell.refused(*words)


def test_training_goes_on_from_the_active_version(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    first = VersionRegistry(copy / "models" / "segmentation").get("v0001")
    kept_out = first.details["held_out_pseudonyms"]
    words = ("train", "--data", data, "--home", copy, *PEOPLE, "--recipe", "sample")
    assert "--holdout" in shell.refused(*words, "--from-active", "--holdout", "0.2")
    assert "--labels" in shell.refused(*words, "--from-active", "--labels", "one,two")
    shell.json(*words, "--epochs", "1", "--from-active")
    second = VersionRegistry(copy / "models" / "segmentation").get("v0002")
    assert second.details["held_out_pseudonyms"] == kept_out  # never trained on by either
    records = Records(Home(copy))
    used = {c.person for c in records.ledger.cases_of(second.run_id)}
    assert len(used) == 4
    assert not {records.pseudonyms.of(person) for person in used} & set(kept_out)


def test_training_again_keeps_all_but_the_weights(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    """Without the marked person another network would be planned, and no audit could compare."""
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    registry, records = VersionRegistry(copy / "models" / "segmentation"), Records(Home(copy))
    first = registry.get("v0001")
    gone = records.ledger.cases_of(first.run_id)[0].person
    records.forget_set.mark("patient", gone, "quality", actor="test")
    words = ("train", "--data", data, "--home", copy, *PEOPLE, "--recipe", "sample")
    assert "--again" in shell.refused(*words, "--again", "--holdout", "0.2")
    assert "--again" in shell.refused(*words, "--again", "--labels", "one,two")
    assert "differ in the weights" in shell.refused(*words, "--again", "--from-active")
    shell.json(*words, "--epochs", "1", "--again", "--seed", "7")
    second = registry.get("v0002")
    assert second.config == first.config
    assert second.parent_sha256 is None
    assert second.details["held_out_pseudonyms"] == first.details["held_out_pseudonyms"]
    used = {c.person for c in records.ledger.cases_of(second.run_id)}
    assert used == {c.person for c in records.ledger.cases_of(first.run_id)} - {gone}


def test_only_one_training_of_a_model_at_a_time(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    words = ("train", "--data", data, "--home", tmp_path, *TRAIN)
    before = datetime.now(UTC).replace(microsecond=0)
    with training_lock(Home(tmp_path), "segmentation", "server", 0):
        err = shell.refused(*words, "--json")
    assert f"process {os.getpid()} on {socket.gethostname()}, server" in err
    since = datetime.fromisoformat(re.findall(r"since (\S+)\)", err)[0])
    assert before <= since <= datetime.now(UTC)
    assert "Ctrl-C" in err
    assert Records(Home(tmp_path)).runs.list(10) == []
    assert VersionRegistry(tmp_path / "models" / "segmentation").versions() == []
    with training_lock(Home(tmp_path), "other", "server", 0):
        shell.json(*words)


def test_a_training_holds_the_lock_of_its_model(
    shell: Shell, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def execute(_run: TrainingRun, _select: object) -> None:
        with pytest.raises(ConflictError) as refusal:
            training_lock(Home(tmp_path), "segmentation", "server", 0).__enter__()
        said.append(str(refusal.value))
        raise InvalidInputError("enough.")

    monkeypatch.setattr(TrainingRun, "execute", execute)
    assert "enough" in shell.refused("train", "--data", data, "--home", tmp_path, *TRAIN, "--json")
    assert f"process {os.getpid()}" in said[0]
    assert "command line" in said[0]
    with training_lock(Home(tmp_path), "segmentation", "server", 0):
        pass  # let go


def test_a_version_published_meanwhile_is_not_passed_over(
    shell: Shell, home: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    registry = VersionRegistry(copy / "models" / "segmentation")

    @contextlib.contextmanager
    def late(*_: object) -> Iterator[None]:
        (tmp_path / "weights.safetensors").write_bytes(b"of the other training")
        registry.publish(tmp_path, registry.get("v0001").config, parent_sha256=None, run_id="r")
        yield

    monkeypatch.setattr("segunlearn.app.locks.training_lock", late)
    words = ("train", "--data", data, "--home", copy, *PEOPLE, "--recipe", "sample")
    err = shell.refused(*words, "--from-active", "--json")
    assert "v0002" in err
    assert "v0001" in err


def test_what_is_marked_for_forgetting_is_neither_trained_on_nor_measured(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    forget_set = Records(Home(copy)).forget_set
    forget_set.mark("series", "p001_0", "consent_withdrawn", actor="dpo", opaque=True)
    code, out, err = shell("evaluate", "--data", data, "--home", copy, *PEOPLE, "--json")
    assert code == 0
    assert "1 images are marked" in err
    assert "p001" not in json.loads(out)["per_person"]
    for number in (0, 2, 3, 4):
        forget_set.mark("series", f"p00{number}_0", "consent_withdrawn", actor="dpo", opaque=True)
    for command in ("evaluate", "train"):
        code, _, err = shell(command, "--data", data, "--home", copy, *PEOPLE)
        assert code == 2
        assert "every labelled image is marked" in err


@pytest.mark.parametrize(
    "words",
    [
        (), ("train",), ("infer",), ("evaluate",), ("info",), ("serve",), ("forget",), ("ledger",),
        ("forget", "mark"), ("ledger", "verify"),
    ],
)  # fmt: skip
def test_every_command_has_help(shell: Shell, words: tuple[str, ...]) -> None:
    code, out, err = shell(*words, "--help")
    assert code == 0
    assert "Usage: segunlearn" in out
    assert err == ""


def test_help_comes_without_loading_torch() -> None:
    code = (
        "import sys; sys.argv = ['segunlearn', 'train', '--help']\n"
        "from segunlearn.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, "the command line loads torch before it is needed"


def test_the_program_tells_its_version(shell: Shell) -> None:
    code, out, _ = shell("--version")
    assert code == 0
    assert re.fullmatch(r"segunlearn \d+\.\d+\S*\n", out)


def test_a_file_that_no_record_may_name_is_named_at_the_terminal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> NoReturn:
        error = InvalidInputError("support, study 2 of 5: no grid.")
        error.about = "p001.nii.gz"
        raise error

    monkeypatch.setattr(cli, "app", broken)
    assert shell.refused("adapt") == "error: p001.nii.gz: support, study 2 of 5: no grid.\n"


def write_bad_people(folder: Path) -> Path:
    path = folder / "people.csv"
    path.write_text("name,who\na,b\n")
    return path


def write_gaps(folder: Path) -> Path:
    """Masks as drawing programs write them: the highest grey is a structure."""
    for case in write_cases(folder, 3):
        assert case.label is not None
        label = read_volume(case.label, label=True)
        values = np.array([0, 255, 100], np.uint8)[label.array]
        write_volume(Volume(values, label.affine), case.label)
    return folder


BAD_TRAINING: dict[str, tuple[Callable[[Path, Path], tuple[object, ...]], str]] = {
    "no folder": (lambda d, t: ("--data", t / "none"), "no folder 'images'"),
    "no labels": (lambda d, t: ("--data", t, *PEOPLE), "none with a label map"),
    "bad regex": (lambda d, t: ("--data", d, "--person-regex", "("), "is not valid"),
    "regex without group": (lambda d, t: ("--data", d, "--person-regex", "p..."), "has no group"),
    "regex of other files": (lambda d, t: ("--data", d, "--person-regex", "^(q)"), "not match"),
    "no people file": (lambda d, t: ("--data", d, "--people", t / "none.csv"), "no such people"),
    "bad people file": (lambda d, t: ("--data", d, "--people", write_bad_people(t)), "first line"),
    "two people rules": (
        lambda d, t: ("--data", d, *PEOPLE, "--people", t / "people.csv"), "not by both",
    ),
    "unknown label": (lambda d, t: ("--data", d, *PEOPLE, "--labels", "ball"), "values from 0"),
    "label twice": (lambda d, t: ("--data", d, *PEOPLE, "--labels", "a,a"), "--labels"),
    "label not shown": (lambda d, t: ("--data", d, *PEOPLE, "--labels", "a,b,c"), "shows c"),
    "bad flip": (lambda d, t: ("--data", d, *PEOPLE, "--flip", "Z"), "--flip"),
    "bad modality": (lambda d, t: ("--data", d, *PEOPLE, "--modality", "C-T"), "--modality"),
    "no modality of DICOM": (lambda d, t: ("--data", d, *PEOPLE, "--modality", "CTA"), "use CT"),
    "bad device": (lambda d, t: ("--data", d, *PEOPLE, "--device", "abacus"), "no device"),
    "bad rate": (lambda d, t: ("--data", d, *PEOPLE, "--learning-rate", "0"), "learning_rate"),
    "no parent": (lambda d, t: ("--data", d, *PEOPLE, "--from-active"), "no version"),
    "another kind of device": (lambda d, t: ("--data", d, *PEOPLE, "--device", "meta"), "use auto"),
    "gaps in labels": (
        lambda d, t: ("--data", write_gaps(t / "gaps"), *PEOPLE),
        "label values found: 100, 255; number the structures 1, 2, … without gaps, or name them",
    ),
    **{f"model {name!r}": (
        lambda d, t, name=name: ("--data", d, *PEOPLE, "--model", name), f"--model {name!r}: use",
    ) for name in ("../../esc", "", "a b", "/esc")},
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_training_mistakes_are_one_sentence(
    shell: Shell, data: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "images").mkdir()
    words, expected = BAD_TRAINING[case]
    bad = words(data, tmp_path)
    err = shell.refused("train", "--recipe", "sample", "--home", tmp_path / "home", *bad, "--json")
    assert expected in err
    assert VersionRegistry(tmp_path / "home" / "models" / "segmentation").versions() == []
    assert not list(tmp_path.rglob("*esc*"))


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--data", "d"), ("meta-train", "--data", "d"), ("unlearn",),
        ("adapt", "--studies", "s"), ("replay", "train"), ("replay", "page", "p.html"),
        ("replay", "forget-feature"), ("restore", "r"),
    ],
)  # fmt: skip
def test_seeds_are_numbers_that_every_library_takes(shell: Shell, words: tuple[str, ...]) -> None:
    code, _, err = shell(*words, "--seed", "99999999999999999999")
    assert code == 2
    assert "less than or equal to 2147483647" in err


def test_a_damaged_label_is_named_once(shell: Shell, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "labels" / "p001_0.nii.gz").write_bytes(b"no gzip")
    err = shell.refused("train", "--data", tmp_path / "data", "--home", tmp_path / "h", "--json")
    assert err.startswith("error: p001_0.nii.gz: the file cannot be read")
    assert err.count("p001_0.nii.gz: ") == 1


def test_names_come_from_the_data_sets_description(
    shell: Shell, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    described = tmp_path / "data" / "dataset.json"
    words = ("train", "--data", tmp_path / "data", "--home", tmp_path / "h", "--recipe", "sample")
    described.write_text('{"labels": {"0": "background", "1": "ball", "3": "cube"}}')
    assert "without gaps" in shell.refused(*words, "--json")
    described.write_text('{"labels": ["ball"]}')
    assert "no readable 'labels'" in shell.refused(*words, "--json")


def no_segmenting(*_: object, **__: object) -> NoReturn:
    pytest.fail("it segments what it cannot write")


def test_inference_mistakes_are_one_sentence(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    image = data / "images" / "p000_0.nii.gz"
    before = image.read_bytes()
    here = ("--home", home, "--json")
    out = ("-o", tmp_path / "m.nii.gz")
    assert "no version" in shell.refused("infer", image, *out, "--home", tmp_path / "empty")
    assert "has no version 'v0009'" in shell.refused(
        "infer", image, *out, *here, "--version", "v0009"
    )
    assert "no such file" in shell.refused("infer", tmp_path / "none.nii.gz", *out, *here)
    assert "end it in" in shell.refused("infer", image, "-o", tmp_path / "m.png", *here)
    assert "overwrite" in shell.refused("infer", image, "-o", image, *here)
    assert "DICOM series" in shell.refused("infer", image, "-o", tmp_path / "m.dcm", *here)
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference.Segmenter, "predict", no_segmenting)
        taken = ("-o", tmp_path / "folder.nii.gz")
        assert "is a folder" in shell.refused("infer", image, *taken, *here)
    assert "0 DICOM series" in shell.refused("infer", data, *out, *here)
    ct_folder(tmp_path / "two", 1)
    ct_folder(tmp_path / "two", 2)
    (slice_one, *_) = sorted((tmp_path / "two").glob("*"))
    bare = tmp_path / "00000001"  # archives name files without a suffix
    shutil.copy(slice_one, bare)
    for one in (slice_one, bare):
        assert "is one DICOM file. Give the folder of its series" in shell.refused(
            "infer", one, *out, *here
        )
    assert "2 DICOM series" in shell.refused("infer", tmp_path / "two", *out, *here)
    assert image.read_bytes() == before
    assert not (tmp_path / "m.nii.gz").exists()
    (tmp_path / "file").write_text("")
    blocked = ("-o", tmp_path / "file" / "m.nii.gz")
    assert "file" in shell.refused("infer", image, *blocked, *here)


def test_evaluation_mistakes_are_one_sentence(
    shell: Shell, home: Path, data: Path, tmp_path: Path
) -> None:
    here = ("--home", home, "--json")
    write_cases(tmp_path, 1)
    image, label = arrays(3)
    more = np.where(label.array == 2, 7, label.array)
    write_volume(Volume(more, label.affine), tmp_path / "labels" / "p000_0.nii.gz")
    assert "holds values [7]" in shell.refused("evaluate", "--data", tmp_path, *here)
    assert "kept out" in shell.refused(
        "evaluate", "--data", tmp_path, *here, "--held-out", "--person-regex", "(.*)"
    )
    assert "no version" in shell.refused("evaluate", "--data", data, "--home", tmp_path / "none")
    endless = ("--tolerance", "inf")
    assert "--tolerance inf: " in shell.refused("evaluate", "--data", data, *here, *endless)
    assert image.shape == label.shape


def test_info_of_an_empty_home(shell: Shell, tmp_path: Path) -> None:
    """A server has been started there, and nothing was trained yet."""
    Records(Home(tmp_path)).store.close()
    code, _, err = shell("info", "--home", tmp_path)
    assert code == 0
    assert "no models yet" in " ".join(err.split())  # the console wraps a long path
    assert shell.json("info", "--home", tmp_path)["models"] == {}
    assert shell.json("models", "--home", tmp_path)["versions"] == []
    assert shell.json("adapters", "list", "--home", tmp_path)["adapters"] == []


@pytest.mark.parametrize("words", [("info",), ("models",), ("adapters", "list")])
def test_a_mistyped_home_or_model_is_no_empty_one(
    shell: Shell, home: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    for option in ((), ("--json",)):
        none = ("--home", tmp_path / "none", *option)
        assert "none: no store is here" in shell.refused(*words, *none)
        if words != ("info",):
            mistyped = ("--home", home, "--model", "nosuch", *option)
            said = shell.refused(*words, *mistyped)
            assert "no model 'nosuch'; models here: segmentation." in said
    assert not (tmp_path / "none").exists()


def test_ctrl_c_stops_a_training_that_can_be_resumed(data: Path, tmp_path: Path) -> None:
    words = ["train", "--data", str(data), "--home", str(tmp_path), *PEOPLE, "--labels",
             "ball,cube", "--recipe", "sample", "--epochs", "5000"]  # fmt: skip
    code = (
        "import sys; import segunlearn.app.training_run as t; report = t.TrainingRun.report\n"
        "def told(self, p):\n    report(self, p); print(p.phase, flush=True)\n"
        "t.TrainingRun.report = told\n"
        "from segunlearn.cli import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, *words, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert child.stdout is not None
    assert any(line.strip() == "train" for line in child.stdout)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err.startswith("stopped: ")
    assert err.count("\n") == 1
    records = Records(Home(tmp_path))
    (run,) = records.runs.list(10)
    assert run.state == "cancelled"
    assert records.ledger.row(run.run_id).outcome == "cancelled"
    assert records.ledger.verify() == []
