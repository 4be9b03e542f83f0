"""After a power cut any file may be cut off, whatever was acknowledged before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from audit_home import MODEL, Site, site_in
from memorising_task import CONFIG
from segunlearn.app.home_tidy import tidy
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_settle import settle
from segunlearn.dicom.identifiers import Pseudonyms, load_or_create_key
from segunlearn.errors import IntegrityError, SegUnlearnError
from segunlearn.networks import load_weights
from segunlearn.records.store import open_store
from segunlearn.records.versions import VersionRegistry


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A home with a version in service and two marked studies, all closed."""
    site = site_in(tmp_path_factory.mktemp("site"), forget=2, retain=3, unseen=2)
    site.publish(1, [*site.forget, *site.retain])
    site.mark(site.forget)
    site.records.pseudonyms  # noqa: B018  makes the key
    site.records.store.close()
    return site


def found(site: Site, home: Home) -> str:
    """What the next start finds: ``whole``, or the sentence with which something is refused."""
    try:
        records = Records(home)
        try:
            tidy(home)
            settle(home, records)
            faults = [*records.ledger.verify(), *records.trail.verify()]
            if faults:
                return faults[0].message
            active = VersionRegistry(home.model(MODEL)).active()
            assert active is not None, "the version in service is lost without a word"
            load_weights(active.weights, CONFIG, active.sha256)
            assert len(records.forget_set.list(limit=10)) == 2, "a mark is lost without a word"
            assert records.without_forgotten(site.forget) == []
            records.pseudonyms.of("1.2")
        finally:
            records.store.close()
    except SegUnlearnError as error:
        return str(error)
    return "whole"


def test_every_file_cut_off_anywhere(site: Site, tmp_path: Path) -> None:
    """Each is refused with a sentence, or nothing is missing; no mark and no version vanishes."""
    root, seen = site.home.root, dict[str, set[bool]]()
    assert found(site, site.home) == "whole"
    files = [p.relative_to(root) for p in root.rglob("*") if p.is_file() and p.stat().st_size]
    for name in files:
        size = (root / name).stat().st_size
        for keep in (0, 1, size // 2, size - 1):
            home = Home(tmp_path / "home")
            shutil.copytree(root, home.root)
            with (home.root / name).open("r+b") as file:
                file.truncate(keep)
            said = found(site, home)
            assert said == "whole" or len(said) > 40, (name, keep, said)
            seen.setdefault(name.name, set()).add(said == "whole")
            shutil.rmtree(home.root)
    assert seen["weights.safetensors"] == {False}
    assert False in seen["segunlearn.db"]
    assert False in seen["site.key"]


@pytest.mark.parametrize("what", ["gone", "empty", "one byte"])
def test_a_store_that_is_lost_is_not_begun_anew(tmp_path: Path, what: str) -> None:
    place = tmp_path / "segunlearn.db"
    open_store(place).close()
    open_store(place).close()
    place.unlink()
    if what != "gone":
        place.write_bytes(b"" if what == "empty" else b"S")
    for _ in range(2):  # it stays refused
        with pytest.raises(IntegrityError, match="backup"):
            open_store(place)
    (tmp_path / "segunlearn.db.kept").unlink()
    place.unlink(missing_ok=True)
    open_store(place).close()


def test_a_key_that_was_cut_off_is_not_used(tmp_path: Path) -> None:
    key = load_or_create_key(tmp_path / "site.key")
    assert Pseudonyms(key).of("1.2")
    (tmp_path / "site.key").write_bytes(key[:31])
    with pytest.raises(SegUnlearnError):
        load_or_create_key(tmp_path / "site.key")
