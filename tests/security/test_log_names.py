"""No identifier of a patient, study or series in the log, not even of what went wrong."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest

from app_sources import publish_tiny, running_server
from large_pacs import ROOT, LargePacs, series_uid, study_uid
from live_server import live_server
from segunlearn.app.security.log_names import Nameless, hide_identifiers
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.dicom.search import parse
from segunlearn.errors import IntegrityError

UID = "1.2.840.113619.2.55.3.604688.17"
PSEUDONYMS = Pseudonyms(bytes(32))


def logged(text: str, *words: object, error: Exception | None = None) -> str:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, text, words, None)
    if error is not None:
        try:
            raise error
        except type(error) as caught:
            record.exc_info = (type(caught), caught, caught.__traceback__)
    assert Nameless(lambda: PSEUDONYMS).filter(record)
    return logging.Formatter("%(message)s").format(record)


def test_a_uid_becomes_its_pseudonym() -> None:
    assert logged("series %s: away", UID) == f"series {PSEUDONYMS.of(UID)}: away"
    assert logged(f"/studies/{UID}/series/{UID}.4.") == (
        f"/studies/{PSEUDONYMS.of(UID)}/series/{PSEUDONYMS.of(UID + '.4')}."
    )
    assert UID not in logged("it failed", error=ValueError(f"instance {UID}"))


@pytest.mark.parametrize(
    "uid",
    [
        "2.25.329800735698586629295641978511506172918",  # made from a UUID, as this program does
        "2.25.329800735698586629295641978511506172918.12",
        "1.2.840.0113619.02.55.3",  # leading zeros: not allowed, and written by some
    ],
)
def test_uids_of_every_form_become_pseudonyms(uid: str) -> None:
    assert logged(f"image-{uid}, /series/{uid}.") == (
        f"image-{PSEUDONYMS.of(uid)}, /series/{PSEUDONYMS.of(uid)}."
    )


@pytest.mark.parametrize(
    "text", ["127.0.0.1:8000", "torch 2.13.0", "0.25 s", "1.2.3.4", "2.25.1", "2.25 s"]
)
def test_other_numbers_stay(text: str) -> None:
    assert logged(text) == text


def test_without_the_key_nothing_is_said_at_all() -> None:
    def lost() -> Pseudonyms:
        raise IntegrityError("the key cannot be read")

    record = logging.LogRecord("x", logging.ERROR, "f", 1, f"series {UID}", (), None)
    assert Nameless(lost).filter(record)
    assert record.getMessage() == "series (a UID)"


def test_every_handler_is_told_once() -> None:
    logger, handler = logging.getLogger("segunlearn.test_log_names"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        for _ in range(2):
            hide_identifiers(lambda: PSEUDONYMS)
        assert [type(f) for f in handler.filters] == [Nameless]
    finally:
        logger.removeHandler(handler)


def test_what_pydicom_says_of_a_value_is_said_to_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It warns of a birth date that is none by the date, in the log and on the terminal."""
    monkeypatch.setattr(logging.getLogger("pydicom"), "level", logging.NOTSET)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        hide_identifiers(lambda: PSEUDONYMS)
        header = parse({"00100030": {"vr": "DA", "Value": ["1950-02-31"]}})
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert header.PatientBirthDate == "1950-02-31"
    assert [str(w.message) for w in told] == ["something else"]
    assert "1950" not in caplog.text


@pytest.mark.slow
def test_what_goes_wrong_with_a_series_names_it_to_nobody(tmp_path: Path) -> None:
    """A series that arrives by half, and a PACS that goes away: both are errors in the log."""
    home, half = tmp_path / "home", series_uid(3)
    publish_tiny(home)
    pacs = LargePacs(40, labelled=1, broken=frozenset({half}))
    with ExitStack() as outside:
        url = outside.enter_context(live_server(pacs.app()))
        with running_server(f"{url}/dw", home) as server:
            answer = server.get(f"/datastore/image?image={half}")
            assert answer.status_code == 503
            assert half in answer.json()["detail"], "who asked is told"
            outside.close()
            assert server.get(f"/datastore/image?image={series_uid(7)}").status_code == 503
            path = f"/proxy/dicom/wado/studies/{study_uid(2)}/metadata"
            assert server.get(path).status_code == 503
            logs = [server.log, *(home / "app" / "logs").iterdir()]
            assert "5 of 8 instances" in logs[0].read_text()
            for log in logs:
                assert ROOT not in log.read_text(), log.name
