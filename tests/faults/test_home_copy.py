"""A copy of a home: whole while others write, checked to the byte, no way around a purge."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import segunlearn
from app_sources import LABELS, make_study, publish_tiny, write_dicom, write_files
from segunlearn.adapters.keys import KeyStore
from segunlearn.app import home_copy
from segunlearn.app.datastores import open_datastore
from segunlearn.app.datastores.studies import StudiesDatastore
from segunlearn.app.home_copy import check_copy, copy_home, restore_home
from segunlearn.app.locks import training_lock
from segunlearn.app.options import AppOptions, Home
from segunlearn.app.records import Records
from segunlearn.cli import app
from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.ledger_entries import row_digest
from segunlearn.records.store import canonical_json
from segunlearn.records.versions import VersionRegistry
from segunlearn.volumes import write_volume

#: What a home holds for a while, or makes anew; and the keys, so that a purge stays a purge.
LEFT_OUT = {
    "app", "archive-index", "cache", "keys", "locks", "runs", "sessions", "tmp", "unlearning",
}  # fmt: skip
REQUEST = "a" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a version, a mark, a token, a key, and what a copy must leave out."""
    root = tmp_path_factory.mktemp("homes") / "home"
    publish_tiny(root)
    records = Records(Home(root))
    assert records.pseudonyms.of("x")
    records.forget_set.mark("study", "1.2.3", "consent_withdrawn", actor="ann")
    AccessTokens(records.store).create("x", "admin", 9)
    records.store.close()
    KeyStore(root / "keys").create(REQUEST)
    for name in ("cache/image.nii.gz", "tmp/upload", "sessions/s/image", "runs/r/model.part"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"pixels")
    (root / "labels").mkdir()
    (root / "labels" / "a.nii.gz").write_bytes(b"a label")
    return root


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Home:
    shutil.copytree(made, tmp_path / "home")
    return Home(tmp_path / "home")


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Path:
    copy_home(home, tmp_path / "copy")
    return tmp_path / "copy"


def test_there_and_back(home: Home, copy: Path, tmp_path: Path) -> None:
    restore_home(copy, tmp_path / "new")
    new = Home(tmp_path / "new")
    version = VersionRegistry(new.model("segmentation")).active()
    assert version is not None
    assert version.weights.read_bytes() == next(home.root.rglob("weights.safetensors")).read_bytes()
    records = Records(new)
    assert [r.target.id for r in records.forget_set.list()] == ["1.2.3"]
    assert records.pseudonyms.of("p") == Records(home).pseudonyms.of("p")
    assert list(records.ledger.verify()) == list(records.trail.verify()) == []
    assert (new.root / "labels" / "a.nii.gz").read_bytes() == b"a label"
    for path in new.root.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.is_dir(), path.name
    assert new.root.stat().st_mode & 0o077 == 0


def test_what_is_left_out(copy: Path) -> None:
    names = {p.relative_to(copy / "home").parts[0] for p in (copy / "home").rglob("*")}
    assert names == {
        "labels", "ledger.head", "models", "segunlearn.db", "site.key", "trail.head",
    } - ({"ledger.head"} - {p.name for p in (copy / "home").iterdir()})  # fmt: skip
    assert b"pixels" not in b"".join(p.read_bytes() for p in copy.rglob("*") if p.is_file())


def test_every_place_of_a_home_is_copied_or_left_out_on_purpose() -> None:
    """Whoever adds a folder decides: one that is forgotten here is lost with the disk."""
    app = Path(segunlearn.__file__).parent / "app"
    named = re.compile(r'home\.root / "([^"]+)"')
    places = {n for path in app.rglob("*.py") for n in named.findall(path.read_text())}
    places |= set(re.findall(r'self\.root / "([^"]+)"', (app / "options.py").read_text()))
    copied = {*home_copy._FOLDERS, *home_copy._FILES, home_copy.DATABASE_NAME}
    assert {"images", "results"} <= places
    assert places - copied == LEFT_OUT


@pytest.mark.parametrize("kind", ["dicom", "files"])
def test_what_was_stored_beside_a_read_only_folder_of_studies(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As a container has it: labels and uploaded images lie in the home alone."""
    study, folder, sent = make_study(1), tmp_path / "studies", tmp_path / "sent.nii.gz"
    (write_dicom if kind == "dicom" else write_files)(folder, [study])
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda p, *how: Path(p) != folder and allowed(p, *how))

    def open_in(root: Path) -> StudiesDatastore:
        values = {name: i + 1 for i, name in enumerate(LABELS)}
        options = AppOptions.from_conf({"home": str(root)})
        return open_datastore(
            str(folder), options, Home(root), label_values=lambda: values, keep=list
        )

    store = open_in(home.root)
    write_volume(study.label, sent)
    store.save_label(study.series, str(sent), "final", {"user": "ann"})
    if kind == "files":
        write_volume(study.image, sent)
        store.add_image("uploaded", str(sent), {})
    copy_home(home, tmp_path / "copy")
    restore_home(tmp_path / "copy", tmp_path / "new")
    new = open_in(tmp_path / "new")
    assert new.get_labeled_images() == [study.series]
    assert new.list_images() == store.list_images()


def test_a_purge_stays_a_purge(home: Home, copy: Path, tmp_path: Path) -> None:
    """No copy holds a key, so one that is destroyed is nowhere."""
    key = KeyStore(home.keys).get(REQUEST)
    KeyStore(home.keys).destroy(REQUEST)
    restore_home(copy, tmp_path / "new")
    assert not KeyStore(tmp_path / "new" / "keys").has(REQUEST)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or key not in path.read_bytes(), path


def test_a_token_that_was_revoked_since_is_not_good_again(
    home: Home, copy: Path, tmp_path: Path
) -> None:
    restore_home(copy, tmp_path / "new")
    states = [t.state for t in AccessTokens(Records(Home(tmp_path / "new")).store).list()]
    assert states == ["revoked"]


def test_marks_made_meanwhile_are_whole_or_not_there(home: Home, tmp_path: Path) -> None:
    stop, made = threading.Event(), []

    def mark() -> None:
        records = Records(home)
        while not stop.is_set():
            request, _ = records.forget_set.mark(
                "study", f"1.9.{len(made)}", "consent_withdrawn", actor="ann"
            )
            made.append(request.request_id)
        records.store.close()

    writer = threading.Thread(target=mark)
    writer.start()
    try:
        while len(made) < 5:
            assert writer.is_alive()
        for number in range(3):
            before = list(made)
            copy_home(home, tmp_path / f"copy{number}")
            restore_home(tmp_path / f"copy{number}", tmp_path / f"new{number}")
            records = Records(Home(tmp_path / f"new{number}"))
            kept = {r.request_id for r in records.forget_set.list(limit=1000)}
            assert set(before) <= kept  # acknowledged before the copy began
            assert list(records.trail.verify()) == []
            assert records.trail.head().rows == len(kept)
            records.store.close()
    finally:
        stop.set()
        writer.join(30)


def test_every_changed_byte_is_found(copy: Path, tmp_path: Path) -> None:
    check_copy(copy)
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        for content in (bytes(damaged), whole[: len(whole) // 2], b""):
            path.write_bytes(content)
            with pytest.raises(IntegrityError):
                restore_home(copy, tmp_path / "new")
            assert not (tmp_path / "new").exists()
        path.write_bytes(whole)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]


def test_files_that_were_added_removed_or_lead_elsewhere(copy: Path, tmp_path: Path) -> None:
    extra = copy / "home" / "models" / "extra"
    extra.write_bytes(b"x")
    with pytest.raises(IntegrityError, match="added"):
        check_copy(copy)
    extra.unlink()
    extra.symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError, match="added"):
        check_copy(copy)
    extra.unlink()
    key = copy / "home" / "site.key"
    (tmp_path / "elsewhere").write_bytes(key.read_bytes())
    key.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        check_copy(copy)
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="changed"):
        check_copy(copy)


def seal(copy: Path, name: str, about: dict[str, Any]) -> None:
    """Change the manifest as somebody does who knows how it is made."""
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["seal"]
    manifest["files"][name] = about
    manifest["seal"] = row_digest(canonical_json(manifest))
    (copy / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "./site.key"])
def test_a_manifest_leads_nowhere_else(copy: Path, name: str) -> None:
    seal(copy, name, home_copy._described(copy / "home" / "site.key"))
    with pytest.raises(IntegrityError, match="outside"):
        check_copy(copy)


@pytest.mark.parametrize("name", [".env", "segunlearn/__init__.py", "models/.env", "cache/x.npy"])
def test_a_copy_holds_nothing_but_what_is_copied(copy: Path, name: str) -> None:
    """A task's process is started in the home: a module there would be run."""
    added = copy / "home" / name
    added.parent.mkdir(exist_ok=True)
    added.write_text("")
    seal(copy, name, home_copy._described(added))
    with pytest.raises(IntegrityError, match="no part of a home"):
        check_copy(copy)


def test_records_that_were_changed_with_their_digest(copy: Path, tmp_path: Path) -> None:
    """Whoever fits the manifest to a changed database is found by the chain."""
    database = copy / "home" / "segunlearn.db"
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TRIGGER trail_no_update")
        connection.execute("UPDATE trail SET body = replace(body, 'ann', 'eve')")
    connection.close()
    seal(copy, "segunlearn.db", home_copy._described(database))
    with pytest.raises(IntegrityError, match="records were changed"):
        restore_home(copy, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_and_half_a_copy_is_none(
    home: Home, copy: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="already"):
        copy_home(home, copy)
    with pytest.raises(InvalidInputError, match="already"):
        restore_home(copy, home.root)
    with pytest.raises(InvalidInputError, match="inside"):
        copy_home(home, home.root / "copy")
    with pytest.raises(InvalidInputError, match="no store"):
        copy_home(Home(tmp_path / "nowhere"), tmp_path / "other")
    (copy / "manifest.json").unlink()
    with pytest.raises(InvalidInputError, match="interrupted"):
        restore_home(copy, tmp_path / "new")
    with pytest.raises(InvalidInputError, match="interrupted"):
        check_copy(copy)


def test_nothing_is_left_of_a_copy_for_which_there_is_no_room(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood in the way of the next one, and kept the disk full."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(home_copy, "write_json_durably", full)
        with pytest.raises(OSError, match="No space"):
            copy_home(home, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    copy_home(home, tmp_path / "copy")
    check_copy(tmp_path / "copy")


def test_no_copy_while_a_version_may_be_published(home: Home, tmp_path: Path) -> None:
    with (
        training_lock(home, "segmentation", "a test", 1.0),
        pytest.raises(ConflictError, match="another training"),
    ):
        copy_home(home, tmp_path / "copy", wait=0.1)
    assert not (tmp_path / "copy").exists()


def test_a_damaged_store_is_not_copied_as_if_it_were_whole(home: Home, tmp_path: Path) -> None:
    content = bytearray(home.database.read_bytes())
    content[4096:12288] = b"\xff" * 8192
    home.database.write_bytes(content)
    for log in home.root.glob("segunlearn.db-*"):
        log.unlink()
    with pytest.raises(IntegrityError, match=r"damaged|cannot be copied"):
        copy_home(home, tmp_path / "copy")
    assert not (tmp_path / "copy" / "manifest.json").exists()


def test_the_commands(home: Home, tmp_path: Path) -> None:
    run, where = CliRunner().invoke, ["--home", str(home.root)]
    made = run(app, ["backup", str(tmp_path / "copy"), *where, "--json"])
    assert made.exit_code == 0, made.output
    digest = json.loads(made.stdout)["manifest_sha256"]
    assert run(app, ["restore-home", str(tmp_path / "copy"), "--check"]).exit_code == 0
    back = run(app, ["restore-home", str(tmp_path / "copy"), "--home", str(tmp_path / "new")])
    assert back.exit_code == 0, back.output
    kept = json.loads(run(app, ["trail", "list", *where, "--json"]).stdout)
    assert (kept[0]["action"], digest in kept[0]["note"]) == ("backup", True)
    listed = run(app, ["trail", "list", "--home", str(tmp_path / "new"), "--json"])
    assert json.loads(listed.stdout)[0]["action"] == "restore_home"


def test_a_model_that_was_damaged_already_is_told(home: Home, tmp_path: Path) -> None:
    """The copy is byte for byte what was there: older ones were let expire for it."""
    run, where = CliRunner().invoke, ["--home", str(home.root)]
    (version,) = (home.model("segmentation") / "versions").iterdir()
    whole = {p: p.read_bytes() for p in version.iterdir()}
    damages: list[tuple[str, Callable[[Path], object]]] = [
        ("weights.safetensors", Path.unlink),
        ("weights.safetensors", lambda p: p.write_bytes(p.read_bytes()[:99])),
        ("manifest.json", Path.unlink),
    ]
    for number, (name, damage) in enumerate(damages):
        damage(version / name)
        copy = str(tmp_path / f"copy{number}")
        made = run(app, ["backup", copy, *where])
        new = ["--home", str(tmp_path / f"new{number}")]
        checked = run(app, ["restore-home", copy, "--check"])
        restored = run(app, ["restore-home", copy, *new])
        for told in (made, checked, restored):
            assert told.exit_code == 3, told.output
            assert "v0001" in told.output
            assert "keep an older copy" in " ".join(told.output.split())
        for path, content in whole.items():
            path.write_bytes(content)
    assert run(app, ["backup", str(tmp_path / "good"), *where]).exit_code == 0
