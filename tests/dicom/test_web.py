"""What is sent to a PACS, and what its failures become: on a scripted HTTP server."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from segunlearn.dicom.archive import open_archive
from segunlearn.errors import SegUnlearnError, UnavailableError


class Pacs(BaseHTTPRequestHandler):
    """Answers every GET with the next status of the script, 200 and no result at its end."""

    script: ClassVar[list[int]] = []
    body: ClassVar[bytes] = b"[]"
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        self.send_response(self.script.pop(0) if self.script else 200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_arguments: object) -> None:
        return


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in (("script", []), ("seen", []), ("body", b"[]")):
        monkeypatch.setattr(Pacs, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pacs)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web/"
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_fields_are_repeated_parameters_and_pages_are_asked_for(pacs: str, tmp_path: Path) -> None:
    open_archive(pacs, index_dir=tmp_path).list_series(modalities=("MR",))
    url = urlsplit(Pacs.seen[0][0])
    query = parse_qs(url.query)
    assert url.path == "/dicom-web/series"
    assert query["Modality"] == ["MR"]
    assert {"PatientID", "StudyInstanceUID"} <= set(query["includefield"])
    assert query["limit"] == ["100"]
    assert query["offset"] == ["0"]


def test_user_and_password_and_token(pacs: str, tmp_path: Path) -> None:
    open_archive(pacs, index_dir=tmp_path, user="ann", password="secret").list_series()
    expected = base64.b64encode(b"ann:secret").decode()
    assert Pacs.seen[-1][1]["Authorization"] == f"Basic {expected}"
    open_archive(pacs, index_dir=tmp_path, token="abc", headers={"X-Site": "7"}).list_series()
    assert Pacs.seen[-1][1]["Authorization"] == "Bearer abc"
    assert Pacs.seen[-1][1]["X-Site"] == "7"


def test_a_busy_pacs_is_asked_again(pacs: str, tmp_path: Path) -> None:
    Pacs.script.extend([503, 429])
    assert open_archive(pacs, index_dir=tmp_path, attempts=3).list_series(modalities=("CT",)) == []
    assert len(Pacs.seen) == 3


def test_a_pacs_that_stays_busy(pacs: str, tmp_path: Path) -> None:
    Pacs.script.extend([503] * 10)
    with pytest.raises(UnavailableError, match="the PACS answers 503"):
        open_archive(pacs, index_dir=tmp_path, attempts=2).list_series()
    assert len(Pacs.seen) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b'{"a": 1}',
        b'["text"]',
        b"null",
        b'[{"00200011": {"vr": "IS", "Value": ["x"]}}]',
        b"[1]",
        b"\xff\xfe",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_answers_that_are_no_dicom(pacs: str, tmp_path: Path, body: bytes) -> None:
    Pacs.body = body
    archive = open_archive(pacs, index_dir=tmp_path)
    found = []
    with suppress(SegUnlearnError):
        found = archive.list_series()
    assert found == []


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_one_bad_value_does_not_hide_the_series(pacs: str, tmp_path: Path) -> None:
    Pacs.body = (
        b'[{"0020000E": {"vr": "UI", "Value": ["1.2.3"]}, "0020000D": {"vr": "UI", "Value":'
        b' ["1.2"]}, "00200011": {"vr": "IS", "Value": ["x"]}, "00080060": {"vr": "CS", "Value":'
        b' ["CT"]}}, {"0020000E": {"vr": "UI", "Value": ["1.2.4"]}}]'
    )
    found = open_archive(pacs, index_dir=tmp_path).list_series(modalities=("CT",))
    assert [r.series_instance_uid for r in found] == ["1.2.3", "1.2.4"]
    assert found[0].series_number is None
