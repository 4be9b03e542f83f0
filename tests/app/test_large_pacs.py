"""A PACS with more series than anybody waits for: only what is asked for is looked up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from large_pacs import LargePacs, series_uid, study_uid
from live_server import live_server
from segunlearn.app.activelearning import First, RandomChoice
from segunlearn.app.datastores import DicomDatastore, listing, open_datastore
from segunlearn.app.datastores.index import CachedIndex
from segunlearn.app.datastores.listing import SeriesList
from segunlearn.app.datastores.studies import PATIENCE
from segunlearn.app.forget_service import QUESTIONS_A_VIEW, StudiesCatalogue
from segunlearn.app.options import AppOptions, Home
from segunlearn.app.pauses import pause_after
from segunlearn.dicom.search import SeriesRecord
from segunlearn.errors import NotFoundError, UnavailableError
from segunlearn.volumes import read_volume

SERIES, LABELLED = 2000, 3


@contextmanager
def opened(pacs: LargePacs, home: Path, **conf: str) -> Iterator[DicomDatastore]:
    with live_server(pacs.app()) as url:
        options = AppOptions.from_conf({"home": str(home), "refresh": "60", **conf})
        store = open_datastore(
            f"{url}/dw", options, Home(options.home), label_values=lambda: {"core": 1}, keep=list
        )
        assert isinstance(store, DicomDatastore)
        yield store


@pytest.fixture(scope="module")
def slow() -> LargePacs:
    """A PACS whose list takes 24 pages of 0.3 seconds."""
    return LargePacs(SERIES, labelled=LABELLED, delay=0.3)


@pytest.fixture(scope="module")
def store(slow: LargePacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DicomDatastore]:
    with opened(slow, tmp_path_factory.mktemp("home")) as store:
        assert not slow.asked, "nothing is asked before it is needed"
        yield store


def test_one_image_needs_no_list(slow: LargePacs, store: DicomDatastore) -> None:
    uid = series_uid(SERIES - 1)
    assert store.get_image_info(uid)["PatientID"] == "SYN-199"
    assert Path(store.get_image_uri(uid)).is_file()
    assert slow.asked["pages"] == 0
    assert slow.asked["retrieved series"] == 1
    before = slow.asked["series"]
    store.record(uid)
    assert slow.asked["series"] == before, "what was just asked is not asked again"
    with pytest.raises(NotFoundError):
        store.record(series_uid(SERIES))
    assert slow.asked["pages"] == 0


def test_labelled_images_need_no_list(slow: LargePacs, store: DicomDatastore) -> None:
    assert store.get_labeled_images() == sorted(series_uid(5 * n) for n in range(LABELLED))
    assert slow.asked["pages"] == 0


def test_a_mark_needs_no_list(slow: LargePacs, store: DicomDatastore) -> None:
    catalogue = StudiesCatalogue(lambda: store)
    found = catalogue.subject("series", series_uid(SERIES - 6))
    assert found is not None
    assert (found.study, found.person) == (study_uid(398), "SYN-199")
    assert catalogue.subject("series", series_uid(SERIES)) is None
    assert catalogue.holds("study", study_uid(17))
    assert catalogue.issuers("SYN-199") == {""}
    assert catalogue.issuers("SYN-1990") == set()
    assert catalogue.studies("SYN-199", "") == [study_uid(398), study_uid(399)]
    assert slow.asked["pages"] == 0


def test_a_series_is_asked_for_its_instances_where_the_list_does_not_count_them(
    tmp_path: Path,
) -> None:
    """One that was still arriving would stay cut off for ever; one question a refresh will do."""
    pacs = LargePacs(40, counts=False)
    row = pacs._of[series_uid(7)]
    row["NumberOfSeriesRelatedInstances"] = 2
    with opened(pacs, tmp_path) as store:
        for arrived in (2, 8):
            row["NumberOfSeriesRelatedInstances"] = arrived
            store.refresh()
            uri = store.get_image_uri(series_uid(7))
            assert read_volume(Path(uri)).shape[2] == arrived
            pacs.asked.clear()
            assert store.get_image_uri(series_uid(7)) == uri
            assert pacs.asked.total() == 0
        store.refresh()
        store.get_image_uri(series_uid(7))
        assert pacs.asked["instances"] == 2, "one page, and one that brings nothing new"
        assert pacs.asked["retrieved series"] == 0, "it has not grown"
        store._counted.clear()
    assert store.get_image_uri(series_uid(7)) == uri, "the PACS is away: what is known of it"


@pytest.mark.parametrize("arrived", [2, 8])
def test_what_was_cut_off_before_instances_were_counted_is_fetched_again(
    tmp_path: Path, arrived: int
) -> None:
    """A note of an older program does not tell of how many instances its file was made."""
    pacs = LargePacs(40, counts=False)
    row = pacs._of[series_uid(7)]
    row["NumberOfSeriesRelatedInstances"] = 2
    with opened(pacs, tmp_path) as store:
        path = Path(store.get_image_uri(series_uid(7)))
        note = path.with_name(f"{series_uid(7)}.json")
        note.write_text(json.dumps({**json.loads(note.read_text()), "instances": None}))
        row["NumberOfSeriesRelatedInstances"] = arrived
        pacs.asked.clear()
        for _ in range(3):
            store.refresh()
            assert read_volume(Path(store.get_image_uri(series_uid(7)))).shape[2] == arrived
        assert pacs.asked["retrieved series"] == 1


def test_a_pacs_that_counts_is_not_asked_to_count(tmp_path: Path) -> None:
    pacs = LargePacs(40)
    with opened(pacs, tmp_path) as store:
        store.get_image_uri(series_uid(7))
        asked = pacs.asked["instances"]
        assert asked == 2, "what came is compared with what the archive holds"
        for _ in range(3):
            store.refresh()
            store.get_image_uri(series_uid(7))
        assert pacs.asked["instances"] == asked


def test_a_pacs_that_lists_no_instances_is_taken_as_it_is(tmp_path: Path) -> None:
    pacs = LargePacs(40, counts=False)
    with opened(pacs, tmp_path) as store:
        store.archive.count_instances = lambda *_: 0  # type: ignore[method-assign]
        for _ in range(2):
            store.refresh()
            assert Path(store.get_image_uri(series_uid(7))).is_file()
        assert pacs.asked["retrieved series"] == 1


def test_a_view_of_many_asks_for_few_and_for_none_twice(tmp_path: Path) -> None:
    pacs = LargePacs(40, labelled=2)
    with opened(pacs, tmp_path) as store:
        catalogue = StudiesCatalogue(lambda: store)
        store.list_images()
        pacs.asked.clear()
        known = [("study", study_uid(0)), ("series", series_uid(1))]
        missing = [(kind, f"1.2.{n}") for n in range(40) for kind in ("study", "series")]
        number = 0
        for more in (QUESTIONS_A_VIEW, 80 - QUESTIONS_A_VIEW, 0):
            found = catalogue.subjects([*missing, *known])
            number += more
            assert pacs.asked.total() == number
        assert {target: subject.person for target, subject in found.items()} == dict.fromkeys(
            known, "SYN-0"
        )


def test_what_arrives_after_a_view_missed_it_can_be_marked_at_once(tmp_path: Path) -> None:
    pacs = LargePacs(40)
    late = pacs._of.pop(series_uid(7))
    studies = {name: rows for name, rows in pacs._by_study.items() if name == study_uid(2)}
    pacs._by_study.pop(study_uid(2))
    with opened(pacs, tmp_path) as store:
        catalogue = StudiesCatalogue(lambda: store)
        targets = [("series", series_uid(7)), ("study", study_uid(2))]
        store._series.so_far = lambda _: ({}, False)  # type: ignore[method-assign]  # no list yet
        assert catalogue.subjects(targets) == {}
        pacs._of[series_uid(7)] = late
        pacs._by_study.update(studies)
        marked = [catalogue.subject(*target) for target in targets]
        assert [subject and subject.person for subject in marked] == ["SYN-0", "SYN-1"]
        assert list(catalogue.subjects(targets).values()) == marked, "the view knows it now, too"


def test_numbers_and_a_page_do_not_wait_for_the_end(slow: LargePacs, store: DicomDatastore) -> None:
    began = time.monotonic()
    status = store.status()
    page = store.json(limit=120, offset=30)
    assert time.monotonic() - began < PATIENCE + 3
    assert status["listing"] is True
    assert 0 < status["total"] < SERIES
    assert len(page["objects"]) == 120
    assert series_uid(0) not in page["objects"]
    chosen = RandomChoice(seed=1)({}, store), First()({}, store)
    assert all(c is not None and c["id"] for c in chosen)
    assert catalogue_of(store, 390) == "SYN-195", "asked for, as it is not listed yet"
    assert len(store.list_images()) == SERIES
    status = store.status()
    assert (status["total"], status["completed"], "listing" in status) == (SERIES, LABELLED, False)
    assert slow.limits == {100}
    assert slow.largest <= 100


def catalogue_of(store: DicomDatastore, study: int) -> str:
    found = StudiesCatalogue(lambda: store).subject("study", study_uid(study))
    return found.person if found is not None else ""


@pytest.mark.parametrize("cap", [30, 100, 250])
def test_a_pacs_that_caps_its_answers_is_listed_whole(tmp_path: Path, cap: int) -> None:
    pacs = LargePacs(400, labelled=1, cap=cap)
    with opened(pacs, tmp_path) as store:
        assert store.list_images() == sorted(series_uid(n) for n in range(400))
        assert len(store.json()["objects"]) == 400
        assert len(store.json(limit=7, offset=396)["objects"]) == 4
        assert store.get_labeled_images() == [series_uid(0)]
        assert pacs.largest <= min(cap, 100)


def test_a_filter_holds_for_what_is_asked_one_by_one(tmp_path: Path) -> None:
    pacs = LargePacs(40, labelled=2)
    with opened(pacs, tmp_path, filter="PatientID=SYN-0", modalities="CT") as store:
        assert store.record(series_uid(0)).person == "SYN-0"
        for other in (4, 10):  # MR; another patient
            with pytest.raises(NotFoundError):
                store.record(series_uid(other))
        assert store.get_labeled_images() == [series_uid(0), series_uid(5)]


def test_the_list_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_LISTED", 150)
    with opened(LargePacs(400), tmp_path) as store:
        assert len(store.list_images()) == 150
        assert store.status()["listing"] is True
        assert store.record(series_uid(399)).study == study_uid(79), "others are still found"


def test_what_is_known_is_told_while_the_pacs_is_away(tmp_path: Path) -> None:
    pacs = LargePacs(40)
    with opened(pacs, tmp_path, refresh="0") as store:
        store.list_images()
        store._series._whole.took = 1e9  # type: ignore[union-attr]  # as if it were a long list
        catalogue = StudiesCatalogue(lambda: store)
        assert catalogue.subject("study", study_uid(1)) is not None
    assert store.record(series_uid(7)).study == study_uid(1)
    assert catalogue.subject("study", study_uid(1)) is not None
    with pytest.raises(UnavailableError):
        store.record(series_uid(41))


def rows(count: int) -> list[SeriesRecord]:
    return [SeriesRecord(study_uid(n // 5), series_uid(n), "SYN", "CT") for n in range(count)]


def test_a_reading_that_fails_is_said_and_tried_again() -> None:
    archive: list[list[SeriesRecord]] = []

    def read() -> Iterator[SeriesRecord]:
        if not archive:
            yield from rows(3)
            raise UnavailableError("away")
        yield from archive[0]

    series = SeriesList(read, seconds=0.0)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="away"):
            series.get()
    archive.append(rows(5))
    assert len(series.get()) == 5
    archive.clear()
    assert len(series.get()) == 5, "the old list is served"
    series.invalidate()
    with pytest.raises(UnavailableError):
        series.get()


def test_who_changed_the_archive_sees_the_change() -> None:
    archive, gate = rows(2), threading.Event()

    def read() -> Iterator[SeriesRecord]:
        found = list(archive)
        yield found[0]
        gate.wait(5)
        yield from found[1:]

    series = SeriesList(read, seconds=60.0)
    assert series.so_far(0.05) == ({series_uid(0): archive[0]}, False)
    archive.extend(rows(4)[2:])
    series.invalidate()  # the reading under way began before
    gate.set()
    assert len(series.get()) == 4
    assert series.of_study(study_uid(0)) == archive[0]


def test_what_takes_long_is_read_seldom() -> None:
    assert pause_after(0.1, 10.0) == 10.0
    assert pause_after(20.0, 10.0) == 400.0
    assert pause_after(1.0, 60.0) == 60.0


def test_nobody_waits_longer_for_an_index_than_said() -> None:
    gate = threading.Event()

    def read() -> int:
        gate.wait(5)
        return 7

    index = CachedIndex(read, seconds=60.0)
    assert index.within(0.05) is None
    gate.set()
    assert index.within(5) == 7
