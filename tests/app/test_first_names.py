"""A folder of files before its first training: what the values of its labels mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from app_sources import Study, make_study, write_files
from segunlearn.app.application import SegUnlearnApp
from segunlearn.app.datastores import FolderDatastore
from segunlearn.errors import InvalidInputError, LabelError
from segunlearn.volumes import Volume, read_volume, write_volume

Started = Callable[..., SegUnlearnApp]


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    found = [make_study(n) for n in range(3)]
    write_files(tmp_path / "studies", found)
    return found


@pytest.fixture
def start(tmp_path: Path, studies: list[Study]) -> Iterator[Started]:
    apps = []

    def make(**conf: str) -> SegUnlearnApp:
        made = SegUnlearnApp(
            str(tmp_path), str(tmp_path / "studies"), {"home": str(tmp_path / "home"), **conf}
        )
        apps.append(made)
        return made

    yield make
    for app in apps:
        app.records.store.close()


def save(app: SegUnlearnApp, study: Study, *names: str | None, tag: str = "final") -> None:
    """Save a label that holds 1, 2, … for these names; None: a value without a name."""
    array = np.zeros_like(study.label.array)
    for value in range(1, max(1, len(names)) + 1):
        array[:, :, 4 * value : 4 * value + 4] = value
    path = app.home.scratch() / "sent.nii.gz"
    write_volume(Volume(array, study.label.affine), path)
    named = [{"name": n, "idx": i} for i, n in enumerate(names, start=1) if n is not None]
    app.datastore().save_label(study.series, str(path), tag, {"label_info": named})


def values_of(app: SegUnlearnApp, study: Study) -> list[int]:
    """Values in the file of a finished label, in the order in which ``save`` wrote them."""
    array = read_volume(Path(app.datastore().get_label_uri(study.series, "final"))).array
    return [int(array[0, 0, z]) for z in range(4, array.shape[2], 4) if array[0, 0, z]]


def first_labels(app: SegUnlearnApp) -> tuple[str, ...]:
    store = app.datastore()
    assert isinstance(store, FolderDatastore)
    return store.structures()


def test_organs_drawn_as_the_same_number_stay_two(start: Started, studies: list[Study]) -> None:
    app = start()
    save(app, studies[0], "liver")
    save(app, studies[1], "spleen")
    save(app, studies[2], "kidney", "Spleen ", "liver")
    assert [values_of(app, s) for s in studies] == [[1], [2], [3, 2, 1]]
    assert first_labels(app) == ("liver", "spleen", "kidney")
    assert app.datastore().get_label_info("person1", "final")["label_info"] == [
        {"name": "spleen", "idx": 2}
    ]


def test_the_first_training_knows_them_apart(start: Started, studies: list[Study]) -> None:
    app = start()
    for study, name in zip(studies, ("liver", "spleen", "liver"), strict=True):
        save(app, study, name)
    app.train({"model": "segmentation", "max_epochs": 1, "val_split": 0.0, "recipe": "sample"})
    assert app.model.label_values() == {"liver": 1, "spleen": 2}


def test_a_misspelt_name_goes_with_its_label(start: Started, studies: list[Study]) -> None:
    app = start()
    save(app, studies[0], "livr")
    save(app, studies[0], "liver")
    save(app, studies[1], "spleen")
    assert first_labels(app) == ("liver", "spleen")


def test_labels_saved_at_once_share_no_number(start: Started, studies: list[Study]) -> None:
    app = start()
    threads = [
        Thread(target=saved_alone, args=(app, s, n))
        for s, n in zip(studies, ("a", "b", "c"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = [Path(app.datastore().get_label_uri(s.series, "final")) for s in studies]
    assert sorted(int(read_volume(p).array.max()) for p in paths) == [1, 2, 3]


def saved_alone(app: SegUnlearnApp, study: Study, name: str) -> None:
    path = app.home.scratch() / f"{study.series}.nii.gz"
    write_volume(Volume((study.label.array > 0).astype(np.uint8), study.label.affine), path)
    info: dict[str, Any] = {"label_info": [{"name": name, "idx": 1}]}
    app.datastore().save_label(study.series, str(path), "final", info)


def test_labels_without_names_are_trained_by_their_numbers(
    start: Started, studies: list[Study]
) -> None:
    app = start()
    save(app, studies[0])
    write_volume(studies[1].label, app.home.root.parent / "studies/labels/person1.nii.gz")
    app.datastore().refresh()
    assert first_labels(app) == ("label_1", "label_2")


def test_labels_without_names_beside_labels_with_names_are_refused(
    start: Started, studies: list[Study]
) -> None:
    app = start()
    save(app, studies[0], "liver")
    save(app, studies[1])
    with pytest.raises(InvalidInputError, match=r"person1.*--conf labels liver"):
        app.train({"model": "segmentation", "max_epochs": 1})
    assert first_labels(start(labels="liver")) == ("liver",)
    save(app, studies[1], "spleen")
    assert first_labels(app) == ("liver", "spleen")


def test_labels_kept_with_other_numbers_are_refused(start: Started, studies: list[Study]) -> None:
    """As older versions kept them, or where ``--conf labels`` counts in another order."""
    app = start()
    save(app, studies[0], "liver")
    save(app, studies[1], "spleen")
    with pytest.raises(InvalidInputError, match=r"'liver' is 1.*--conf labels liver,spleen"):
        first_labels(start(labels="spleen,liver"))
    assert first_labels(start(labels="liver,spleen,kidney")) == ("liver", "spleen", "kidney")
    app.datastore().update_label_info(
        "person1", "final", {"label_info": [{"name": "spleen", "idx": 1}]}
    )
    write_volume(
        Volume((studies[1].label.array > 0).astype(np.uint8), studies[1].label.affine),
        Path(app.datastore().get_label_uri("person1", "final")),
    )
    with pytest.raises(InvalidInputError, match=r"1 is 'liver'.*'spleen'.*submit.*again"):
        first_labels(app)
    save(app, studies[1], "spleen")
    assert first_labels(app) == ("liver", "spleen")


def test_a_value_that_a_list_of_names_leaves_out_is_refused(
    start: Started, studies: list[Study]
) -> None:
    app = start()
    with pytest.raises(LabelError, match="value 2"):
        save(app, studies[0], "liver", None)
    assert app.datastore().status()["label_tags"] == {}


def test_other_tags_claim_no_numbers(start: Started, studies: list[Study]) -> None:
    app = start()
    save(app, studies[0], "draft", tag="mine")
    save(app, studies[1], "liver")
    assert first_labels(app) == ("liver",)
