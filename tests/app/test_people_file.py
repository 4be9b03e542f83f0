"""A people file that changes while the server runs, and files that arrive without a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app_sources import make_study, write_files
from segunlearn.app.datastores import FolderDatastore, StudiesDatastore, open_datastore
from segunlearn.app.forget_service import StudiesCatalogue
from segunlearn.app.options import AppOptions, Home
from segunlearn.errors import InvalidInputError
from segunlearn.volumes import write_volume

ROWS = "file,person\nperson0,anna\nperson1,bert\n"


class Site:
    """Two labelled files with their rows, and the server that serves them."""

    def __init__(self, root: Path) -> None:
        self.folder, self.table = root / "studies", root / "people.csv"
        write_files(self.folder, [make_study(n) for n in range(2)], labelled=2)
        self.table.write_text(ROWS)
        conf = {"home": str(root / "home"), "people": str(self.table), "refresh": "0"}
        options = AppOptions.from_conf(conf)
        store = open_datastore(
            str(self.folder),
            options,
            Home(options.home),
            label_values=lambda: {"core": 1, "shell": 2},
            keep=list,
        )
        assert isinstance(store, FolderDatastore)
        self.store: StudiesDatastore = store

    def arrives(self, name: str) -> None:
        """Copy a labelled file in, without a row."""
        study = make_study(3)
        write_volume(study.image, self.folder / f"{name}.nii.gz")
        write_volume(study.label, self.folder / "labels" / "final" / f"{name}.nii.gz")
        self.store.refresh()

    def write(self, text: str) -> None:
        """Put another people file in the old one's place."""
        self.table.write_text(text)
        self.store.refresh()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_file_without_a_person_is_left_out_alone(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It once hid all that arrived with it, and nothing but a restart helped."""
    site.arrives("new")
    assert site.store.list_images() == ["person0", "person1"]
    for ask in (site.store.record, site.store.get_image_uri, site.store.get_image_info):
        with pytest.raises(InvalidInputError, match="no row for 'new'; add one"):
            ask("new")
    assert [c.person for c in site.store.trainable().cases] == ["anna", "bert"]
    assert "nobody knows whom it shows" in site.store.trainable().skipped["new"]
    assert site.store.trainable(only=["person0"]).skipped == {}
    status = site.store.status()
    assert (status["total"], status["completed"], status["skipped"]) == (2, 2, 1)
    assert "1 images of nobody known are left out" in caplog.text
    assert "'new'" not in caplog.text
    assert "no row for 'new'" in status["detail"]


def test_a_row_that_is_added_is_read_without_a_restart(site: Site, tmp_path: Path) -> None:
    site.arrives("new")
    assert "new" not in site.store.list_images()
    site.write(ROWS + "new,anna\n")
    assert site.store.record("new").person == "anna"
    assert site.store.list_images() == ["new", "person0", "person1"]
    assert "skipped" not in site.store.status()
    site.write(ROWS + "new,anna\nsent,carl\n")
    write_volume(make_study(4).image, tmp_path / "sent.nii.gz")
    assert site.store.add_image("sent", str(tmp_path / "sent.nii.gz"), {}) == "sent"
    assert site.store.record("sent").person == "carl"


def test_a_file_that_no_rule_covers_says_so_when_it_is_marked(site: Site) -> None:
    site.arrives("new")
    with pytest.raises(InvalidInputError, match="no row for 'new'"):
        StudiesCatalogue(lambda: site.store).holds("study", "new")
    assert StudiesCatalogue(lambda: site.store).holds("study", "nobody") is False


def _remove(table: Path) -> None:
    table.unlink()


def _cut(table: Path) -> None:
    table.write_text("file,person\nperson0,anna\nperson1")


def _name_series(table: Path) -> None:
    table.write_text("file,person,series\nperson0,anna,2.25.1\nperson1,bert,2.25.2\n")


@pytest.mark.parametrize("spoil", [_remove, _cut, _name_series])
def test_a_people_file_that_became_wrong_leaves_the_list_as_it_was(
    site: Site, spoil: Callable[[Path], None]
) -> None:
    site.store.list_images()
    spoil(site.table)
    site.store.refresh()
    assert "not read again since it changed" in site.store.status()["detail"]
    site.arrives("new")
    assert site.store.list_images() == ["person0", "person1"]
    assert [c.person for c in site.store.trainable().cases] == ["anna", "bert"]
    with pytest.raises(InvalidInputError, match=r"no row for 'new'.* since it changed"):
        site.store.record("new")
    site.table.unlink(missing_ok=True)
    site.write(ROWS + "new,carl\n")
    assert site.store.record("new").person == "carl"
