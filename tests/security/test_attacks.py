"""Every hole of the platform as an attack on the running server, without login and with it."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
import requests

from api_fuzz import fuzz
from app_sources import (
    Server,
    make_study,
    publish_tiny,
    running_server,
    wait_until,
    write_files,
)
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.store import open_store
from segunlearn.volumes import write_volume

pytestmark = pytest.mark.slow

#: An image named after a person, as files of hospitals are.
IMAGE = "Mustermann-Erika-19610704"
SECRET = b"a secret of the machine, which no reply may hold"


@dataclass
class Place:
    """A server on a folder of files; ``auth`` is the strongest caller's header."""

    server: Server
    root: Path
    login: bool
    auth: dict[str, str]

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request as the administrator, the path exactly as it is written."""
        headers = {**self.auth, **options.pop("headers", {})}
        url = self.server.url + path
        request = requests.Request(method, url, headers=headers, **options).prepare()
        request.url = url
        with requests.Session() as session:
            return session.send(request, timeout=60)

    def outside(self) -> dict[Path, bytes]:
        """Files beside the home with their content."""
        files = (p for p in self.root.rglob("*") if p.is_file())
        return {p: p.read_bytes() for p in files if "home" not in p.relative_to(self.root).parts}


@pytest.fixture(scope="module", params=["off", "tokens"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("attacks")
    studies = [make_study(n) for n in range(2)]
    write_files(root / "studies", studies, labelled=2)
    for path in (root / "studies" / "person0.nii.gz", root / "studies/labels/final/person0.nii.gz"):
        path.rename(path.with_name(f"{IMAGE}.nii.gz"))
    (root / "secret").write_bytes(SECRET)
    home = root / "home"
    publish_tiny(home)
    auth = {}
    if request.param == "tokens":
        store = open_store(home / "segunlearn.db")
        text, _ = AccessTokens(store).create("the administrator", "admin", 1)
        auth = {"Authorization": f"Bearer {text}"}
        store.close()
    with running_server(
        str(root / "studies"),
        home,
        conf={"login": request.param, "max_upload": "8"},
        environment={"SEGUNLEARN_CLIENT_SECRET": "not-for-the-log"},
    ) as server:
        yield Place(server, root, request.param == "tokens", auth)


def volume() -> bytes:
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    return gzip.compress(image.to_bytes())


def tar_bomb() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo("../../escaped.py")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    return content.getvalue()


NII = ("x.nii.gz", volume())
ESCAPES: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "/datastore/image?image=../escaped", {"files": {"file": NII}}),
    ("PUT", "/datastore/image?image=..%2F..%2Fescaped", {"files": {"file": NII}}),
    ("PUT", "/datastore/image?image=/tmp/escaped", {"files": {"file": NII}}),
    ("PUT", "/datastore/image?image=a%00b", {"files": {"file": NII}}),
    ("PUT", "/datastore/image?image=x", {"files": {"file": ("../../x.py", b"import os")}}),
    ("PUT", f"/datastore/label?image={IMAGE}&tag=../../escaped", {"files": {"label": NII}}),
    ("PUT", f"/datastore/label?image={IMAGE}&tag=/escaped", {"files": {"label": NII}}),
    ("PUT", "/datastore/label?image=../../secret", {"files": {"label": NII}}),
    ("DELETE", "/datastore/image?id=../../secret", {}),
    ("DELETE", f"/datastore/label?id={IMAGE}&tag=..", {}),
    ("PUT", "/session/?uncompress=true", {"files": {"files": ("x.tar", tar_bomb())}}),
    ("PUT", "/session/?uncompress=true", {"files": {"files": ("x.zip", tar_bomb())}}),
    ("GET", "/session/..%2F..%2Fsecret?image=true", {}),
    ("GET", "/session/../../secret?image=true", {}),
    ("POST", "/infer/segmentation?image=../../secret", {}),
    ("POST", "/infer/segmentation?image=ROOT/secret", {}),
    ("POST", "/infer/segmentation", {"data": {"params": '{"image": "ROOT/secret"}'}}),
    ("POST", "/infer/..%2Fsegmentation?image=x", {}),
    ("POST", "/infer/segmentation?session_id=../../secret", {}),
    ("GET", "/datastore/image?image=../../secret", {}),
    ("GET", "/datastore/image?image=ROOT/secret", {}),
    ("GET", f"/datastore/label?label={IMAGE}&tag=../../../secret", {}),
    ("GET", "/model/..%2F..%2Fsecret", {}),
    ("GET", "/model/../secret", {}),
    ("PUT", "/model/segmentation", {"files": {"file": ("m.pt", b"weights")}}),
    ("GET", "/runs/..%2F..%2Fsecret", {}),
    ("POST", "/train/..", {"json": {}}),
    ("POST", "/train/segmentation", {"json": {"train_ds": "ROOT/secret"}}),
    ("POST", "/models/../activate", {"json": {}}),
    ("GET", "/audits/..%2F..%2Fsecret/report", {}),
    ("GET", "/proxy/dicom/..%2Fsystem", {}),
    ("GET", "/proxy/dicom/wado/%2e%2e/system", {}),
    ("GET", "/ohif/..%2F..%2F..%2Fapp.py", {}),
    ("GET", "/ohif/%2e%2e/%2e%2e/app.py", {}),
    ("GET", "/static/..%2F..%2Fapp.py", {}),
    ("POST", "/reload", {}),
]  # fmt: skip


def test_nothing_outside_the_home_is_read_or_written(place: Place) -> None:
    before = place.outside()
    wrong = []
    for method, path, options in ESCAPES:
        text = json.dumps(options, default=repr).replace("ROOT", str(place.root))
        data = json.loads(text) if "files" not in options else options
        answer = place.call(method, path.replace("ROOT", str(place.root)), **data)
        if not 400 <= answer.status_code < 500 or SECRET in answer.content:
            wrong.append((method, path, answer.status_code, answer.text[:120]))
    assert wrong == []
    assert place.outside() == before


def test_a_name_in_the_request_chooses_no_file(place: Place) -> None:
    """``model_filename`` and ``name`` are joined to paths by the platform."""
    before = place.outside()
    params = {"model_filename": "../../../secret", "name": "../../escaped", "model": "../x"}
    answer = place.call(
        "POST",
        f"/infer/segmentation?image={IMAGE}&output=json",
        data={"params": json.dumps(params)},
    )
    assert answer.status_code == 200
    assert answer.json()["version"] == "v0001"
    assert place.outside() == before


def test_a_nested_note_breaks_no_list(place: Place) -> None:
    """An answer holds some 250 levels, a request many more."""
    nested = '{"comment": ' + "[" * 300 + "]" * 300 + "}"
    sent = [
        place.call("PUT", f"/datastore/image/info?image={IMAGE}", data={"info": nested}),
        place.call("PUT", f"/datastore/label/info?label={IMAGE}&tag=final", data={"info": nested}),
        place.call(
            "PUT", "/datastore/image?image=nested", files={"file": NII}, data={"params": nested}
        ),
    ]
    assert [(a.status_code, "nested" in a.text) for a in sent] == [(400, True)] * 3
    read = ("/datastore/?output=all", f"/datastore/image/info?image={IMAGE}")
    assert [place.call("GET", path).status_code for path in read] == [200, 200]
    assert place.call("POST", "/activelearning/first", json={}).status_code == 200


def test_an_upload_points_to_no_file_of_the_server(place: Place) -> None:
    head = (
        "NRRD0005\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 3\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: raw\n"
        f"data file: {place.root}/secret\n\n"
    )
    files = {"file": ("x.nrrd", head.encode())}
    answer = place.call("POST", "/infer/segmentation?output=image", files=files)
    assert answer.status_code == 400
    assert "another file" in answer.json()["detail"]


def test_a_small_upload_that_claims_a_terabyte(place: Place) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((30000, 30000, 30000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    files = {"file": ("x.nii.gz", gzip.compress(header.binaryblock + bytes(4)))}
    answer = place.call("POST", "/infer/segmentation?output=image", files=files)
    assert answer.status_code == 400
    assert "voxels" in answer.json()["detail"]


def raw(place: Place, head: str, body: bytes = b"", pieces: int = 1) -> bytes:
    """Send bytes as they are; returns the first of the answer."""
    where = urlsplit(place.server.url)
    token = place.auth.get("Authorization")
    lines = f"{head}\r\nHost: {where.netloc}\r\n" + (f"Authorization: {token}\r\n" if token else "")
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as link:
        link.sendall(f"{lines}\r\n".encode())
        try:
            for _ in range(pieces):
                link.sendall(body)
        except OSError:  # the server has heard enough
            pass
        try:
            return link.recv(4096)
        except ConnectionResetError:
            return b"reset"


def test_a_body_without_end_is_cut_off(place: Place) -> None:
    """By its announced length, and by what arrives where none is announced."""
    form = "Content-Type: multipart/form-data; boundary=b"
    for path in ("/infer/segmentation", "/session/"):
        method = "PUT" if "session" in path else "POST"
        told = raw(place, f"{method} {path} HTTP/1.1\r\n{form}\r\nContent-Length: 99999999999",
                   b"--b\r\n")  # fmt: skip
        assert told.startswith(b"HTTP/1.1 413"), told[:200]
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\n'
    piece = b"100000\r\n" + (part + bytes(1 << 20))[: 1 << 20] + b"\r\n"
    head = f"POST /infer/segmentation HTTP/1.1\r\n{form}\r\nTransfer-Encoding: chunked"
    assert raw(place, head, piece, pieces=40)[:12] in (b"HTTP/1.1 413", b"reset")
    large = raw(place, "POST /train/segmentation HTTP/1.1\r\nContent-Type: application/json\r\n"
                "Content-Length: 99999999", b"[")  # fmt: skip
    assert large.startswith(b"HTTP/1.1 413"), large[:200]
    deep = place.call("POST", "/activelearning/first", data="[" * 200_000,
                      headers={"Content-Type": "application/json"})  # fmt: skip
    assert 400 <= deep.status_code < 500
    assert place.call("GET", "/info/").status_code == 200


def test_a_foreign_page_reads_and_changes_nothing(place: Place) -> None:
    for method, path in (("GET", "/info/"), ("GET", "/datastore/?output=all")):
        answer = place.call(method, path, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
    answer = place.call("OPTIONS", "/datastore/label", headers=asked)
    assert "access-control-allow-origin" not in answer.headers
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert place.call("POST", "/train/", json={}, headers=headers).status_code == 403
    if place.login:  # a browser sends the cookie, and what it told a proxy on the way
        with requests.Session() as browser:
            browser.headers["Authorization"] = "Basic dTpw"
            token = place.auth["Authorization"].removeprefix("Bearer ")
            browser.post(f"{place.server.url}/login", data={"token": token}, timeout=60)
            assert browser.get(f"{place.server.url}/whoami", timeout=60).status_code == 200
            train, foreign = f"{place.server.url}/train/", {"Origin": "https://evil.example"}
            assert browser.post(train, json={}, headers=foreign, timeout=60).status_code == 403


def test_a_name_bent_to_this_machine_is_not_answered(place: Place) -> None:
    """DNS rebinding: the page's own name, and so its origin, leads to 127.0.0.1."""
    where = urlsplit(place.server.url)
    for name in ("evil.example", f"evil.example:{where.port}", "127.0.0.1.evil.example", ""):
        link = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
        link.putrequest("GET", "/info/", skip_host=True)
        link.putheader("Host", name)
        link.endheaders()
        assert link.getresponse().status in ((401,) if place.login else (400, 421))
        link.close()


def test_other_machines_need_a_login(place: Place) -> None:
    """As MONAI Label's own launcher listens on every address, and behind a proxy of this one."""
    told = {"X-Forwarded-For": "10.1.2.3"}
    answer = requests.get(f"{place.server.url}/info/", headers=told, timeout=60)
    assert answer.status_code == (401 if place.login else 403)
    with_login = place.call("GET", "/info/", headers=told)
    assert with_login.status_code == (200 if place.login else 403)


def test_descriptions_are_for_those_who_may_come_in(place: Place) -> None:
    for path in ("/", "/docs", "/openapi.json", "/static/ohif/index.html", "/metrics", "/logs/"):
        answer = requests.get(place.server.url + path, timeout=60)
        assert answer.status_code == 401 if place.login else answer.status_code in (200, 404), path
    page = place.call("GET", "/")
    assert page.status_code == 200
    assert "<script" not in page.text
    assert "://" not in page.text
    assert place.call("GET", "/docs").status_code == 404


def test_every_route_asks_who_calls(place: Place) -> None:
    """Also those that would forget to: whatever is not named as open needs a login."""
    described = Path(__file__).parents[2] / "docs" / "openapi.json"
    paths = json.loads(described.read_text(encoding="utf-8"))["paths"]
    unasked = set()
    for path, methods in paths.items():
        for method in methods:
            url = place.server.url + re.sub(r"{[^}]*}", "x", path)
            answer = requests.request(method.upper(), url, timeout=60) if place.login else None
            if answer is not None and answer.status_code != 401:
                unasked.add((method, path))
    assert len(paths) > 50
    open_paths = {("get", "/auth/"), ("get", "/health/live"), ("get", "/health/ready")}
    assert unasked == ({*open_paths, ("post", "/auth/token")} if place.login else set())


def test_processes_and_logs_name_nobody(place: Place) -> None:
    """A batch inference in its child process, a saved label: nothing shows which image it was."""
    if not place.login:  # once is enough: the process is the same
        _watch_a_batch(place)
    write_volume(make_study(0).label, place.root / "home" / "l.nii.gz")
    with (place.root / "home" / "l.nii.gz").open("rb") as file:
        path = f"/datastore/label?image={IMAGE}"
        assert place.call("PUT", path, files={"label": file}).status_code == 200
    place.call("GET", "/datastore/image?image=nobody-Mustermann")
    logs = [place.server.log, *(place.root / "home" / "app" / "logs").iterdir()]
    for log in logs:
        text = log.read_text()
        assert "Mustermann" not in text, log.name
        assert "not-for-the-log" not in text
        # "Bearer segunlearn_<name>_<secret>", and the secret may hold a "_" itself
        secret = place.auth.get("Authorization", "no token is here").split("_", 2)[-1]
        assert secret not in text


def _watch_a_batch(place: Place) -> None:
    started = place.call("POST", "/batch/infer/segmentation", json={"images": [IMAGE]})
    assert started.status_code == 200
    seen: set[str] = set()

    def over() -> bool:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _parent(entry) == place.server.process.pid:
                seen.add(_words(entry))
        return str(place.call("GET", "/batch/infer").json()["status"]) in ("DONE", "ERROR")

    wait_until(over, 120, "the batch inference ends", place.server.log)
    assert place.call("GET", "/batch/infer").json()["status"] == "DONE"
    assert any("segunlearn.app.child" in words for words in seen)
    assert not any(IMAGE in words for words in seen)


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _words(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def test_nothing_is_left_where_other_accounts_could_meddle(place: Place) -> None:
    """Temporary files are in the home and gone after use; nothing is for others to read."""
    assert [p for p in (place.root / "home" / "tmp").rglob("*") if p.is_file()] == []
    home = place.root / "home"
    own = [p for p in home.rglob("*") if p.relative_to(home).parts[0] not in ("models",)]
    own = [p for p in own if p.parent != home or p.suffix not in (".safetensors", ".log", ".gz")]
    assert {"tmp", "app", "main.py", "segunlearn.db", "cache"} <= {p.name for p in own}
    for path in own:
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_the_command_refuses_to_serve_strangers(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "from segunlearn.cli import main; main()", "serve", "--studies",
         str(tmp_path / "studies"), "--home", str(tmp_path / "home"), "--host", "0.0.0.0"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("SEGUNLEARN_")},
    )  # fmt: skip
    assert done.returncode == 2
    assert "--let-everyone-in" in done.stderr
    assert time.monotonic() - begun < 60
    assert not (tmp_path / "home" / "app").exists()


def test_generated_requests(place: Place) -> None:
    """A few of what ``tests/benchmarks/fuzz_api.py`` sends ten thousand of; the last test here."""
    if not place.login:  # the routes are the same: once is enough
        return
    before = {p: c for p, c in place.outside().items() if "studies" not in p.parts}
    known = {"model": ["segmentation"], "image": [IMAGE], "id": ["x"], "tag": ["final"]}
    found = fuzz(place.server.url, place.auth, known, 1, wrong=False)
    assert found.faults == []
    assert found.operations > 90
    assert found.requests > 90
    assert sum(n for status, n in found.statuses.items() if status < 400) > 20
    assert {p: c for p, c in place.outside().items() if "studies" not in p.parts} == before
