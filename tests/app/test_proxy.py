"""The way to a PACS: against a stand-in that records what arrives, and against a real Orthanc."""

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl

import httpx
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from live_server import live_server
from segunlearn.app import proxy
from segunlearn.app.dicomweb.common import current_archive
from segunlearn.app.proxy import Upstream, current_upstream, forwarded_query, split_service
from segunlearn.app.proxy_answers import rewrite_addresses
from segunlearn.dicom.archive import Archive, open_archive
from segunlearn.errors import InvalidInputError, NotFoundError

SECRET = "s3cret-word"


def make_pacs(seen: list[Request]) -> FastAPI:
    """Make a stand-in with a DICOMweb root, and a REST interface beside it to hide."""
    pacs = FastAPI()

    @pacs.get("/system")
    def system():
        return {"secret": "the PACS's own interface"}

    @pacs.api_route("/dw/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
    async def dicomweb(path: str, request: Request):
        seen.append(request)
        last = path.rpartition("/")[2]
        if last == "frames":

            async def frames():
                for number in range(3):
                    yield f"frame {number};".encode()
                    await asyncio.sleep(0.05)

            return StreamingResponse(frames(), media_type='multipart/related; boundary="x"')
        if last == "broken":

            async def broken():
                yield b"begin"
                raise RuntimeError("the disk of the PACS failed")

            return StreamingResponse(broken(), media_type="application/octet-stream")
        if last.isdigit() and int(last) >= 200:
            headers = {"WWW-Authenticate": "Basic", "Location": "http://elsewhere/"}
            return Response("inner workings", int(last), headers)
        if last == "slow":
            await asyncio.sleep(2.0)
        if request.method == "POST":
            return {"bytes": len(await request.body())}
        root = "http://pacs.inside:8042/dw"
        if last == "series":
            left = 4 - int(request.query_params.get("offset", 0))
            return [{"00200011": {"vr": "IS"}}] * min(left, int(request.query_params["limit"]))
        return {
            "7FE00010": {"vr": "OW", "BulkDataURI": f"{root}/studies/1.2/bulk/1"},
            "00081190": {"vr": "UR", "Value": [f"{root}/studies/1.2"]},
            "00081030": {"vr": "LO", "Value": ["http://text/studies/ of a human"]},
        }

    return pacs


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def pacs_url(seen):
    with live_server(make_pacs(seen)) as url:
        yield url


def make_app(upstream: Upstream) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await proxy.close_connections(app)

    app = FastAPI(lifespan=lifespan)
    for router in proxy.routers():
        app.include_router(router)
    app.dependency_overrides[current_upstream] = lambda: upstream

    @app.get("/info")
    async def info():
        return {}

    return app


@pytest.fixture(scope="module")
def url(pacs_url):
    upstream = Upstream(f"{pacs_url}/dw", {"qido": "rs"}, "proxy-user", SECRET)
    with live_server(make_app(upstream)) as url:
        yield url


@pytest.fixture
def http(url, seen):
    seen.clear()
    with httpx.Client(base_url=f"{url}/proxy/dicom", timeout=60) as client:
        yield client


def test_query_and_accept_arrive(http, seen):
    accept = "application/dicom+json"
    query = (
        "PatientName=A%26B*&limit=1&offset=0&includefield=00081030%2C00080060&fuzzymatching=true"
    )
    answer = http.get(f"/qido/studies?{query}", headers={"Accept": accept})
    assert answer.status_code == 200
    (request,) = seen
    assert request.url.path == "/dw/rs/studies"
    assert request.headers["accept"] == accept
    assert request.query_params.multi_items() == [
        ("PatientName", "A&B*"),
        ("offset", "0"),
        ("includefield", "00081030"),
        ("includefield", "00080060"),
        ("fuzzymatching", "true"),
        ("limit", "1"),
    ]


def test_the_password_goes_to_the_pacs_and_nowhere_else(http, seen):
    answer = http.get(
        "/wado/studies/1.2", headers={"Authorization": "Bearer mine", "Cookie": "session=1"}
    )
    (request,) = seen
    expected = base64.b64encode(f"proxy-user:{SECRET}".encode()).decode()
    assert request.headers["authorization"] == f"Basic {expected}"
    assert "cookie" not in request.headers
    assert SECRET not in answer.text + str(answer.headers)
    assert SECRET not in repr(Upstream("http://x", {}, "u", SECRET))


def test_no_identifier_is_logged(http, caplog):
    caplog.set_level("INFO")
    http.get("/proxy/dicom/qido/studies?PatientID=SYN-4711")
    assert "4711" not in caplog.text


def test_services_and_their_prefixes(http, seen):
    for path in ("/wado/studies/1.2", "/studies/1.2", "/qido/studies/1.2/series/3/metadata"):
        http.get(path)
    assert [r.url.path for r in seen] == [
        "/dw/studies/1.2",
        "/dw/studies/1.2",
        "/dw/studies/1.2/series/3/metadata",
    ]


def test_answers_stream(http):
    with http.stream("GET", "/wado/studies/1/series/2/instances/3/frames") as answer:
        started = time.monotonic()
        times = [(chunk, time.monotonic() - started) for chunk in answer.iter_raw()]
    assert b"".join(c for c, _ in times) == b"frame 0;frame 1;frame 2;"
    assert len(times) >= 2  # not collected first
    assert answer.headers["content-type"].startswith("multipart/related")


def test_an_answer_that_breaks_off_does_not_look_complete(http):
    with pytest.raises(httpx.RemoteProtocolError):
        http.get("/wado/studies/1/broken")


def test_addresses_of_the_pacs_become_ours(http, url):
    answer = http.get("/wado/studies/1.2/metadata").json()
    here = f"{url}/proxy/dicom/wado/studies/1.2"
    assert answer["7FE00010"]["BulkDataURI"] == f"{here}/bulk/1"
    assert answer["00081190"]["Value"] == [here]
    assert answer["00081030"]["Value"] == ["http://text/studies/ of a human"]


@pytest.mark.parametrize(
    "path",
    [
        "..%2Fsystem", "wado/..%2Fsystem", "wado/..%2F..%2Fsystem", "%2e%2e/system",
        "wado/%2e%2e/%2e%2e/system", "..%252Fsystem", "wado/..%252F..%252Fsystem",
        "wado/studies/..%2F..%2Fsystem", "wado/studies/%2e%2e/%2e%2e/system",
        "wado/studies/..%252F..%252F..%252Fsystem", "wado/studies/..%5C..%5Csystem",
        "wado/studies//etc", "wado/studies/1%3Fx=/system", "wado/studies/1%23/system",
        "wado/studies/1%00", "wado/studies/1%0d%0aHost:x", "system", "wado/system", "wado/",
        "qido/changes", "wado//system", "wado/http://example.org/studies", "wado/.",
    ],
)  # fmt: skip
def test_nothing_outside_of_dicomweb_is_reached(url, seen, path):
    """Sent as raw bytes: clients would tidy the path up."""
    seen.clear()
    host, port = url.removeprefix("http://").split(":")
    status, body = asyncio.run(raw_get(host, int(port), f"/proxy/dicom/{path}"))
    assert status in (400, 404)
    assert "secret" not in body
    assert seen == []


async def raw_get(host, port, path):
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(" ", 2)[1]), answer


@given(st.text(min_size=1, max_size=40))
def test_whatever_is_let_through_stays_below_the_root(text):
    try:
        _, resource = split_service(text, "wado")
    except InvalidInputError:
        return
    built = httpx.URL(f"http://pacs/dw/{resource}")
    assert built.path.startswith("/dw/")
    assert ".." not in built.path.split("/")
    assert built.query == b""
    assert built.host == "pacs"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_nothing_is_changed_or_deleted(http, seen, method):
    answer = http.request(method, "/wado/studies/1.2")
    assert answer.status_code == 403
    assert "PACS" in answer.json()["detail"]
    assert seen == []


def test_store_goes_to_studies_only(http, seen):
    body = b"x" * 300_000
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    answer = http.post("/stow/studies/1.2", content=body, headers={"Content-Type": kind})
    assert answer.json() == {"bytes": len(body)}
    assert seen[0].headers["content-type"] == kind
    assert http.post("/wado/studies", content=body).status_code == 200
    for path in ("/stow/series", "/stow/studies/1/series/2", "/stow/studies/1/reject"):
        assert http.post(path, content=b"").status_code == 403
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("upstream", "status"),
    [(401, 502), (302, 502), (500, 502), (503, 503), (404, 404), (406, 406), (204, 204)],
)
def test_faults_of_the_pacs(http, upstream, status):
    answer = http.get(f"/wado/studies/{upstream}")
    assert answer.status_code == status
    assert "www-authenticate" not in answer.headers
    assert "location" not in answer.headers
    if status >= 500:
        assert "PACS" in answer.json()["detail"]
        assert "inner" not in answer.text


def test_a_pacs_that_is_away():
    with (
        live_server(make_app(Upstream("http://127.0.0.1:9/dw"))) as url,
    ):
        answer = httpx.get(f"{url}/proxy/dicom/qido/studies", timeout=60)
    assert answer.status_code == 503
    assert "cannot be reached" in answer.json()["detail"]
    assert "127.0.0.1" not in answer.text


@contextlib.contextmanager
def impatient_pacs() -> Iterator[str]:
    """A PACS whose patience with an idle connection ends just when its second request arrives."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve(connection):
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
                    b"Content-Length: 2\r\n\r\n[]"
                )
                connection.recv(65536)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],)).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/dw"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_connection_that_the_pacs_has_given_up_is_no_fault():
    with impatient_pacs() as upstream, live_server(make_app(Upstream(upstream))) as url:
        for _ in range(3):
            answer = httpx.get(f"{url}/proxy/dicom/qido/studies", timeout=60)
            assert (answer.status_code, answer.json()) == (200, [])
            stored = httpx.post(f"{url}/proxy/dicom/stow/studies", content=b"", timeout=60)
            assert stored.status_code == 200


@pytest.mark.parametrize(
    ("largest", "path"),
    [("LARGEST_SEARCH", "/qido/studies"), ("LARGEST_JSON", "/wado/studies/1.2/metadata")],
)
def test_an_answer_without_end_is_refused(http, monkeypatch, largest, path):
    monkeypatch.setattr(proxy, largest, 200)
    answer = http.get(path)
    assert answer.status_code == 502
    assert "parts" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("", ["5000"]),
        ("limit=101&offset=202", ["101"]),
        ("limit=100000&offset=5000", ["5000"]),
        ("limit=1&limit=100000", ["5000"]),
    ],
)
@pytest.mark.parametrize(
    "path",
    ["/qido/studies", "/instances", "/wado/studies/1.2/series", "/qido/series/1.2/instances/"],
)
def test_no_search_lists_everything(http, seen, path, query, sent):
    assert http.get(f"{path}?{query}").status_code == 200
    asked = seen[-1].query_params
    assert asked.getlist("limit") == sent
    assert asked.get("offset") == dict(parse_qsl(query)).get("offset")


@pytest.mark.parametrize("limit", ["", "0", "-1", "many", "1e9", "٣"])
def test_a_limit_that_is_none_is_refused(http, seen, limit):
    answer = http.get("/qido/studies", params={"limit": limit})  # to Orthanc, 0 is all
    assert answer.status_code == 400
    assert "limit" in answer.json()["detail"]
    assert seen == []


def test_only_searches_have_a_limit(http, seen):
    for path in ("/wado/studies/1.2/metadata", "/wado/studies/1.2/series/1.3"):
        http.get(path)
        assert "limit" not in seen[-1].query_params


def test_who_gets_no_more_than_the_limit_is_told(http, monkeypatch):
    monkeypatch.setattr(proxy, "MOST_RESULTS", 3)
    full = http.get("/qido/studies/1.2/series?limit=9")
    assert (len(full.json()), full.headers["warning"][:4]) == (3, "299 ")
    assert "offset" in full.headers["warning"]
    for query in ("limit=3", "limit=2", "offset=2"):  # what they asked for, or the last page
        page = http.get(f"/qido/studies/1.2/series?{query}")
        assert page.status_code == 200
        assert "warning" not in page.headers


def test_few_large_answers_are_in_work_at_once(http, monkeypatch):
    """Each needs several times its size."""
    monkeypatch.setattr(proxy, "_SMALL", 100)
    working, most = [], []

    def rewriting(content, here):
        working.append(1)
        most.append(len(working))
        time.sleep(0.1)
        working.pop()
        return rewrite_addresses(content, here)

    monkeypatch.setattr(proxy, "rewrite_addresses", rewriting)
    with ThreadPoolExecutor(6) as pool:
        for answer in pool.map(http.get, ["/qido/studies"] * 6):
            assert answer.status_code == 200
    assert max(most) == 2


def test_rewriting_needs_few_times_the_size_of_an_answer():
    one = {f"0010{n:04X}": {"vr": "LO", "Value": [f"value {n}"]} for n in range(60)}
    one["00081190"] = {"vr": "UR", "Value": ["http://pacs/dw/studies/1.2"]}
    content = json.dumps([one] * 1000).encode()
    tracemalloc.start()
    try:
        changed, count = rewrite_addresses(content, "http://here")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    one["00081190"]["Value"] = ["http://here/studies/1.2"]
    assert (json.loads(changed), count) == ([one] * 1000, 1000)
    assert peak < 4 * len(content)


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"[",
            b"[1,",
            b"[1 2]",
            b"[1]x",
            b"[,]",
            b"{",
            b'{"a": "/studies/"',
            b"\xff/studies/",
        ),
        *(b"[" * 100_000 + b'"/studies/"' + b"]" * 100_000, b"text http://pacs/studies/1"),
    ],
)
def test_what_is_no_json_stays(content):
    assert rewrite_addresses(content, "http://here") == (content, 0)


def test_every_form_of_json_is_read():
    for text in (
        '[{"BulkDataURI": "http:\\/\\/p\\/studies\\/1"}, "\\ud800" , "ü" ]\n',
        " [ ] ",
        "[]",
    ):
        changed, count = rewrite_addresses(text.encode(), "http://here")
        expected = text.replace("http:\\/\\/p", "http://here").replace("\\ud800", "?")
        assert json.loads(changed) == json.loads(expected)
        assert count == len(json.loads(text))


def test_other_requests_are_answered_while_the_pacs_is_slow(url):
    thread = threading.Thread(
        target=httpx.get, args=(f"{url}/proxy/dicom/wado/studies/slow",), kwargs={"timeout": 60}
    )
    thread.start()
    time.sleep(0.1)
    assert httpx.get(f"{url}/info", timeout=60).status_code == 200
    assert thread.is_alive()
    thread.join()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ""),
        ("includefield=all", "includefield=all"),
        ("includefield=a,b&includefield=c", "includefield=a&includefield=b&includefield=c"),
        ("StudyInstanceUID=1.2,1.3&PatientID=", "StudyInstanceUID=1.2,1.3&PatientID="),
        ("PatientName=M%C3%BCller%5EA*", "PatientName=M%C3%BCller^A*"),
    ],
)
def test_queries(query, expected):
    assert forwarded_query(query) == expected


def test_upstream_of_the_app(tmp_path):
    archive = open_archive(
        "http://pacs.example:8042/dicom-web", index_dir=tmp_path, url_prefixes={"wado": "rs"}
    )
    assert current_upstream(archive).root == "http://pacs.example:8042/dicom-web"
    assert current_upstream(archive).prefixes == {"wado": "rs"}
    (tmp_path / "studies").mkdir()
    for other in (None, open_archive(tmp_path / "studies", index_dir=tmp_path / "index")):
        with pytest.raises(NotFoundError, match="folder"):
            current_upstream(other)


def test_google_gets_a_token_of_its_own(monkeypatch):
    google = Upstream("https://healthcare.googleapis.com/v1/projects/p/dicomWeb")
    assert google.is_google
    assert not Upstream("https://googleapis.com.example.org/dw").is_google

    class Credentials:
        token, valid = "old", False

        def refresh(self, request):
            self.token, self.valid = "fresh", True

    credentials = Credentials()
    monkeypatch.setattr(proxy, "_google_credentials", lambda: credentials)
    assert proxy._google_token() == "fresh"


@pytest.mark.pacs
def test_a_real_orthanc_through_the_proxy(orthanc):
    """An independent client does all its work through us, and gets what Orthanc itself gives."""
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyDescription = "through the proxy"
    uids = (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    app = make_app(Upstream(orthanc.url))
    app.dependency_overrides[current_archive] = lambda: Archive(object())
    with live_server(app) as url:
        web = DICOMwebClient(
            f"{url}/proxy/dicom",
            qido_url_prefix="qido", wado_url_prefix="wado", stow_url_prefix="stow",
        )  # fmt: skip
        stored = web.store_instances([ds])
        assert stored.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID
        assert web.search_for_studies(search_filters={"PatientID": "nobody"}) == []
        (study,) = web.search_for_studies(search_filters={"PatientID": ds.PatientID}, limit=5)
        assert study["0020000D"]["Value"] == [ds.StudyInstanceUID]
        listed = requests.get(
            f"{url}/proxy/dicom/qido/studies?includefield=00081030,00080061", timeout=20
        ).json()
        assert listed[0]["00081030"]["Value"] == ["through the proxy"]
        got = web.retrieve_instance(*uids)
        np.testing.assert_array_equal(got.pixel_array, ds.pixel_array)
        (frame,) = web.retrieve_instance_frames(
            *uids, frame_numbers=[1], media_types=("application/octet-stream",)
        )
        assert frame == ds.pixel_array.tobytes()
        metadata = requests.get(
            f"{url}/proxy/dicom/wado/studies/{uids[0]}/metadata", timeout=20
        ).text
        assert orthanc.rest not in metadata
        for path in ("..%2Fsystem", "..%2Fpatients", "wado/..%2F..%2Fsystem"):
            assert requests.get(f"{url}/proxy/dicom/{path}", timeout=20).status_code == 400
