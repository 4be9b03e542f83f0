"""Train, mark, train again, audit: the verdict, what is written, and that it can be refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user

from audit_home import MODEL, Site, site_in
from segunlearn import cli
from segunlearn.app import wiring
from segunlearn.app.audit_files import ATTESTATION, PUBLIC_KEY, REPORT, RESULT, Audits
from segunlearn.app.audit_order import Order
from segunlearn.app.audit_run import AuditRun
from segunlearn.app.audit_targets import Targets
from segunlearn.app.routes import audits as routes
from segunlearn.audit.policy import Policy
from segunlearn.dicom.identifiers import Pseudonyms, load_or_create_key
from segunlearn.errors import IntegrityError, SegUnlearnError

#: Wider bars than the product's: a few dozen people on tiny networks are noisy.
WIDE = Policy(
    unseen_quality_short=-0.06, gap_excess=0.08, worst_person=0.2, membership=0.3,
    calibrated_membership=0.85, relearning_short=0.12, distillation=0.08,
)  # fmt: skip
ORDER = Order(MODEL, quick=True, device="cpu", attacks=("relearning", "artefacts"), policy=WIDE)


@dataclass
class Audited:
    """A site with v0001, which knows six people by heart, and v0002, which never saw them."""

    site: Site
    audit_id: str
    result: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.site.home.audits / self.audit_id


def audit(site: Site, order: Order = ORDER) -> dict[str, Any]:
    run = AuditRun(order, site.home, site.records, "test")
    run.prepare(site.cases)
    return run.execute()


def finding(result: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (f for f in result["findings"] if f["name"] == name)
    return dict(found)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    site = site_in(tmp_path_factory.mktemp("audit"))
    everybody = [*site.forget, *site.retain]
    site.train(everybody)
    site.mark(site.forget)
    site.train(everybody)
    result = audit(site)
    return Audited(site, result["about"]["audit_id"], result)


def test_a_version_trained_without_the_studies_passes(audited: Audited) -> None:
    result = audited.result
    assert result["verdict"]["outcome"] == "passed", result["verdict"]
    assert result["verdict"]["reached"] == "retrained"
    assert result["void"] == []
    assert (result["about"]["candidate"], result["about"]["original"]) == ("v0002", "v0001")
    assert result["provenance"]["exact"] is True
    assert result["sets"]["forget"] == {"studies": 6, "persons": 6}
    assert result["sets"]["retain"]["persons"] == 24
    # a share of the unseen people is left to the attacks
    assert result["sets"]["calibration"]["persons"] == 7
    assert result["sets"]["test"]["persons"] == 17
    assert any("quick audit" in note for note in result["notes"])
    places = {p["where"]: p["state"] for p in result["places"]}
    assert places["models/tiny/versions/v0001"] == "open"
    assert places["models/tiny/versions/v0002"] in ("replaced", "absent")


def test_the_original_itself_is_refused(audited: Audited) -> None:
    order = replace(ORDER, candidate="v0001", original="v0001")
    result = audit(audited.site, order)
    assert result["verdict"]["outcome"] == "refused"
    assert result["provenance"]["exact"] is False
    for name in ("gap_excess", "relearning"):
        value = finding(result, name)["value"]
        assert value > 2 * finding(audited.result, name)["value"]
        assert finding(result, name)["outcome"] == "fail"
    (place,) = (p for p in result["places"] if p["where"].endswith("v0001"))
    assert place["state"] == "open"
    newest = Audits(audited.site.home).summaries(Audits(audited.site.home).ids()[:1])[0]
    assert (newest.outcome, newest.candidate, newest.message) == ("refused", "v0001", "")


def test_nobody_is_named(audited: Audited) -> None:
    run = audited.site.records.runs.get(audited.audit_id)
    assert (run.kind, run.state, run.model) == ("audit", "done", MODEL)
    assert "passed" in run.message
    assert run.progress is not None
    assert run.progress.step == run.progress.total
    texts = [json.dumps(run.parameters), run.message]
    texts += [p.read_text(encoding="utf-8") for p in audited.folder.iterdir()]
    texts += [p.read_text() for p in (audited.site.home.audits / "work").rglob("*.json")]
    assert len(texts) > 8
    assert not [t for t in texts if "Name-" in t]
    assert "data:image" not in (audited.folder / REPORT).read_text()


def test_the_key_is_the_owners_alone(audited: Audited) -> None:
    key = audited.site.home.audit_key
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert (audited.folder / PUBLIC_KEY).read_bytes() == Audits(
        audited.site.home
    ).public_key.read_bytes()


class Shell:
    """Runs ``segunlearn audit`` as its script does, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["segunlearn", "audit", *map(str, words)])
        self._monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def test_show_prints_list_and_findings(shell: Shell, audited: Audited) -> None:
    home = audited.site.home.root
    code, out, _ = shell("show", "--home", home)
    assert code == 0
    assert audited.audit_id in out
    code, out, _ = shell("show", audited.audit_id, "--home", home)
    assert code == 0
    assert "verdict: passed; reached retrained" in out
    assert "gap_excess" in out
    code, out, _ = shell("show", audited.audit_id, "--home", home, "--json")
    assert json.loads(out)["verdict"] == audited.result["verdict"]
    code, out, _ = shell("show", "--home", home, "--json")
    assert json.loads(out)["total"] >= 1
    code, _, err = shell("show", "0" * 32, "--home", home)
    assert code == 2
    assert "no audit" in err


def test_where_tells_the_file_that_a_report_means(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell("where", "exports", "--home", tmp_path)
    assert (code, "no site.key" in err) == (2, True)
    assert list(tmp_path.iterdir()) == [], "a new key would find nothing"
    pseudonyms = Pseudonyms(load_or_create_key(tmp_path / "site.key"))
    file = tmp_path / "exports" / "Mueller.onnx"
    file.parent.mkdir()
    file.touch()
    shown = f"exports/{pseudonyms.of('Mueller')}.onnx"
    assert shell("where", shown, "exports", "--home", tmp_path)[:2] == (
        0,
        f"{file}\n{file.parent}\n",
    )
    file.unlink()
    code, out, err = shell("where", shown, "--home", tmp_path)
    assert (code, out, "no file or folder" in err) == (2, "", True)


def test_verify_works_with_the_folder_alone(
    shell: Shell, audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere: no home, no store, no network; only the folder and the weights."""
    folder = shutil.copytree(audited.folder, tmp_path / "sent")
    weights = shutil.copy(audited.site.registry.get("v0002").weights, tmp_path / "w.bin")
    monkeypatch.setenv("SEGUNLEARN_HOME", str(tmp_path / "nowhere"))
    key = shutil.copy(Audits(audited.site.home).public_key, tmp_path / "trusted.pem")
    words = ("verify", folder, "--weights", f"candidate={weights}", "--public-key", key)
    code, out, err = shell(*words)
    assert (code, err) == (0, "")
    assert "passed" in out
    assert "not checked: original" in out
    code, out, _ = shell(*words, "--json")
    assert set(json.loads(out)["verified"]) == {RESULT, REPORT, "candidate"}
    assert not (tmp_path / "nowhere").exists()
    code, _, err = shell("verify", folder, "--weights", f"original={weights}")
    assert code == 2
    assert "w.bin" in err
    code, _, err = shell("verify", folder, "--weights", f"nobody={weights}")
    assert code == 2


def flips(data: bytes) -> Iterator[bytes]:
    """The same bytes with one changed, at the ends and in between."""
    for at in sorted({0, 1, len(data) - 2, len(data) - 1, *range(0, len(data), len(data) // 7)}):
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("name", [RESULT, REPORT, ATTESTATION, PUBLIC_KEY, "weights"])
def test_any_changed_byte_is_found_and_named(
    shell: Shell, audited: Audited, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(audited.folder, tmp_path / "sent")
    weights = Path(shutil.copy(audited.site.registry.get("v0002").weights, tmp_path / "weights"))
    words = ("verify", folder, "--weights", f"candidate={weights}")
    assert shell(*words)[0] == 0
    path = weights if name == "weights" else folder / name
    good = path.read_bytes()
    for bad in flips(good):
        path.write_bytes(bad)
        code, out, err = shell(*words)
        assert (code, out) == (2, "")
        assert name in err
    path.write_bytes(good + b"\n")
    assert shell(*words)[0] == 2
    path.unlink()
    code, _, err = shell(*words)
    assert code == 2
    assert name in err


def test_a_changed_audit_is_not_shown(audited: Audited, tmp_path: Path, shell: Shell) -> None:
    home = replace(audited.site.home, root=tmp_path)
    shutil.copytree(audited.folder, home.audits / audited.audit_id)
    shutil.copy(Audits(audited.site.home).public_key, Audits(home).public_key)
    files = Audits(home)
    assert files.get(audited.audit_id)["verdict"]["outcome"] == "passed"
    path = home.audits / audited.audit_id / RESULT
    path.write_text(path.read_text().replace('"passed"', '"refused"'))
    with pytest.raises(IntegrityError, match=RESULT):
        files.get(audited.audit_id)
    (line,) = files.summaries(files.ids())
    assert line.outcome == "damaged"
    assert RESULT in line.message
    code, out, _ = shell("show", "--home", tmp_path)
    assert code == 0
    assert "damaged" in out


def test_an_audit_in_the_place_of_another_is_not_shown(
    audited: Audited, tmp_path: Path, shell: Shell
) -> None:
    """Whoever may write the folder could make a refused audit look passed, without any key."""
    home = replace(audited.site.home, root=tmp_path)
    refused = "0" * 32
    shutil.copytree(audited.folder, home.audits / refused)
    shutil.copy(Audits(audited.site.home).public_key, Audits(home).public_key)
    with pytest.raises(IntegrityError, match=f"of the audit {audited.audit_id}.*{refused}"):
        Audits(home).report(refused)
    for word in ("show", "verify"):
        code, out, err = shell(word, refused, "--home", tmp_path)
        assert (code, out) == (2, "")
        assert audited.audit_id in err


@pytest.fixture
def server(audited: Audited) -> FastAPI:
    server = FastAPI()
    server.include_router(routes.router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    server.add_exception_handler(RequestValidationError, wiring._validation_error)
    server.dependency_overrides[routes.audits] = lambda: Audits(audited.site.home)
    return server


@pytest.fixture
def client(server: FastAPI) -> Iterator[TestClient]:
    with TestClient(server) as opened:
        yield opened


def test_audits_over_rest(client: TestClient, audited: Audited) -> None:
    page = client.get("/audits").json()
    assert page["total"] == len(page["audits"]) >= 1
    assert audited.audit_id in {a["audit_id"] for a in page["audits"]}
    created = [a["created"] for a in page["audits"]]
    assert created == sorted(created, reverse=True)
    assert client.get("/audits", params={"limit": 0}).json()["audits"] == []
    one = client.get(f"/audits/{audited.audit_id}").json()
    assert one["verdict"] == audited.result["verdict"]
    report = client.get(f"/audits/{audited.audit_id}/report")
    assert report.headers["content-type"].startswith("text/html")
    policy = report.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy
    assert report.content == (audited.folder / REPORT).read_bytes()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/audits/" + "0" * 32, 404),
        ("/audits/" + "0" * 32 + "/report", 404),
        ("/audits/work", 422),
        ("/audits/..%2f..", 404),
        ("/audits?limit=201", 422),
        ("/audits?offset=-1", 422),
    ],
)
def test_bad_questions_are_answered(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_roles(
    client: TestClient, server: FastAPI, audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)

    def be(*roles: str) -> None:
        def user() -> User:
            if not roles:
                raise HTTPException(401, "Could not validate credentials")
            return User(username="x", roles=[f"monailabel-{role}" for role in roles])

        server.dependency_overrides[get_current_user] = user

    be()
    assert client.get("/audits").status_code == 401
    be("user")
    assert client.get("/audits").status_code == 200
    report = f"/audits/{audited.audit_id}/report"
    assert client.get(report).status_code == 200
    real = Audits.report

    def with_pictures(self: Audits, audit_id: str) -> tuple[dict[str, Any], bytes]:
        result, page = real(self, audit_id)
        return {**result, "about": {**result["about"], "pictures": True}}, page

    monkeypatch.setattr(Audits, "report", with_pictures)
    assert client.get(report).status_code == 403
    be("admin")
    assert client.get(report).status_code == 200


def test_a_tampered_report_is_not_sent(client: TestClient, audited: Audited) -> None:
    path = audited.folder / REPORT
    good = path.read_bytes()
    try:
        path.write_bytes(good.replace(b"Audit report", b"Audit  report"))
        answer = client.get(f"/audits/{audited.audit_id}/report")
        assert answer.status_code == 409
        assert REPORT in answer.json()["detail"]
    finally:
        path.write_bytes(good)


def test_pictures_only_for_administrators(
    shell: Shell, audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("run", "--data", "x", "--home", audited.site.home.root, "--include-images")
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    code, _, err = shell(*words)
    assert code == 2
    assert "administrator" in err


def test_named_targets_choose_the_same_sets(audited: Audited) -> None:
    site = audited.site
    one = site.forget[0]
    for targets in (Targets(patients=(one.person,)), Targets(series=(one.series,))):
        run = AuditRun(replace(ORDER, targets=targets), site.home, site.records)
        choice = run.prepare(site.cases)
        assert [c.series for c in choice.forget] == [one.series]
        # the five others are marked: in no set
        assert len(choice.retain) == 24
        assert not {c.person for c in choice.retain} & {c.person for c in site.forget}
