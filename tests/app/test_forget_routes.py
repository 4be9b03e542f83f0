"""The forget routes: marks, roles, bad input, and the status of whole study lists."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user
from pydicom.uid import generate_uid

from segunlearn.app import wiring
from segunlearn.app.forgetting import Forgetting, Marked, marking, proposing, reporting
from segunlearn.app.routes import forget, ledger, runs
from segunlearn.cases import Case
from segunlearn.dicom.rejection import Proposal, deleted
from segunlearn.errors import ForbiddenError, NotFoundError, SegUnlearnError
from segunlearn.records.coverage import Subject
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger
from segunlearn.records.ledger_entries import LedgerCase, LedgerEntry
from segunlearn.records.outbox import Outbox, PacsSeen
from segunlearn.records.runs import Progress, Runs
from segunlearn.records.store import Store

STUDY, SERIES, PERSON = "1.2.840.1", "1.2.840.1.1", "4711"
TRAINED, OTHER = "1.2.840.9", "1.2.840.2"
MARK = {"reason": "consent_withdrawn"}


@dataclass
class Catalogue:
    """Two studies of one patient; ``down`` when the PACS cannot say."""

    down: bool = False
    asked: list[str] = field(default_factory=list)
    issued_by: set[str] = field(default_factory=set)

    def issuers(self, patient_id: str) -> set[str]:
        return self.issued_by if patient_id == PERSON else set()

    def subject(self, kind: str, target_id: str) -> Subject | None:
        if kind == "study" and target_id == STUDY:
            return Subject(study=STUDY, person=PERSON)
        if kind == "series" and target_id == SERIES:
            return Subject(series=SERIES, study=STUDY, person=PERSON)
        return None

    def subjects(self, targets: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Subject]:
        found = {target: self.subject(*target) for target in targets}
        return {target: subject for target, subject in found.items() if subject is not None}

    def holds(self, kind: str, target_id: str) -> bool | None:
        self.asked.append(target_id)
        return None if self.down else target_id in (STUDY, SERIES, "liver")

    def studies(self, patient_id: str, issuer: str) -> list[str] | None:
        self.asked.append(patient_id)
        known = patient_id == PERSON and issuer in ("", *self.issued_by)
        return None if self.down else [STUDY, OTHER] if known else []


@dataclass
class Background:
    """In place of what follows the PACS."""

    woken: int = 0

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue()


@pytest.fixture
def records(store: Store, catalogue: Catalogue) -> Forgetting:
    outbox = Outbox(store)
    return Forgetting(
        forget_set=ForgetSet(store, on_change=reporting(outbox)),
        ledger=Ledger(store),
        runs=Runs(store),
        outbox=outbox,
        seen=PacsSeen(store),
        catalogue=catalogue,
    )


@pytest.fixture
def server(records: Forgetting) -> FastAPI:
    server = FastAPI()
    for router in (forget.router, ledger.router, runs.router):
        server.include_router(router)
    server.add_exception_handler(SegUnlearnError, wiring._our_error)
    server.add_exception_handler(RequestValidationError, wiring._validation_error)
    server.dependency_overrides[forget.forgetting] = lambda: records
    return server


@pytest.fixture
def client(server: FastAPI) -> Iterator[TestClient]:
    with TestClient(server) as opened:
        yield opened


SignIn = Callable[..., None]


@pytest.fixture
def sign_in(server: FastAPI, monkeypatch: pytest.MonkeyPatch) -> SignIn:
    """Switch authentication on and be somebody with some roles; nobody without a name."""
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)

    def be(name: str, *roles: str) -> None:
        def user() -> User:
            if not name:
                raise HTTPException(401, "Could not validate credentials")
            return User(username=name, roles=[f"monailabel-{role}" for role in roles])

        server.dependency_overrides[get_current_user] = user

    return be


def trained_on(
    records: Forgetting,
    study: str = TRAINED,
    version: str = "a" * 64,
    run_id: str = "r" * 32,
    cases: list[LedgerCase] | None = None,
) -> None:
    records.ledger.append(
        LedgerEntry(
            run_id=run_id,
            kind="train",
            model="segmentation",
            version_sha256=version,
            parent_sha256=None,
            cases=cases or [LedgerCase(f"{study}.1", study, "P9", "train", "b" * 64, "c" * 64)],
            parameters={"epochs": 1},
            seed=1,
            versions={"torch": "2"},
            machine={"device": "cpu"},
            started="2026-01-01T00:00:00Z",
            ended="2026-01-01T01:00:00Z",
            outcome="done",
        )
    )


def everything(records: Forgetting) -> tuple[Any, ...]:
    """All that a refused request must leave as it was."""
    assert records.outbox is not None
    return (records.forget_set.list(limit=1000), records.outbox.list(limit=1000))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"/forget/studies/{STUDY}", "study"),
        (f"/forget/series/{SERIES}", "series"),
        (f"/forget/patients/{PERSON}", "patient"),
        ("/forget/structures/liver", "structure"),
    ],
)
def test_marking_twice_is_one_request(client: TestClient, path: str, kind: str) -> None:
    first = client.put(path, json={"reason": "consent_withdrawn", "note": "by phone"})
    assert first.status_code == 201
    made = first.json()
    assert made["target"]["kind"] == kind
    assert (made["state"], made["live"], made["needed"]) == ("requested", True, "unlearned")
    second = client.put(path, json={"reason": "quality", "note": "other"})
    assert second.status_code == 200
    assert second.json() == made
    told = client.get("/pacs/outbox").json()["documents"]
    assert len(told) == (0 if kind == "structure" else 1)  # one more mark is no news to the PACS
    raised = client.put(path, json={**MARK, "needed": "retrained"})
    assert raised.status_code == 200
    assert raised.json() == {**made, "needed": "retrained", "updated": raised.json()["updated"]}
    assert client.get("/forget/requests").json()["total"] == 1


def test_a_mark_waits_for_the_pacs_in_the_same_transaction(
    client: TestClient, records: Forgetting
) -> None:
    client.put(f"/forget/series/{SERIES}", json=MARK)
    client.put("/forget/structures/liver", json=MARK)
    answer = client.get("/pacs/outbox").json()
    assert answer["waiting"] == 1
    (document,) = answer["documents"]
    assert document["state"] == "requested"
    assert records.outbox is not None
    (item,) = records.outbox.list()
    assert item.lane == f"study:{STUDY}"
    assert item.payload["target_kind"] == "series"


def test_a_series_of_a_marked_study_says_so(client: TestClient) -> None:
    study = client.put(f"/forget/studies/{STUDY}", json=MARK).json()
    series = client.put(f"/forget/series/{SERIES}", json=MARK)
    assert series.status_code == 201
    assert series.json()["covered_by"] == [study["request_id"]]
    assert series.json()["message"]


def trained_on_person(records: Forgetting, person: str, version: str) -> None:
    series = f"1.7.{len(version)}.{ord(version[0])}"
    case = LedgerCase(series, f"{series}.1", person, "train", "b" * 64, "c" * 64)
    trained_on(records, version=version, run_id=version[:32], cases=[case])


def test_a_number_of_several_issuers_is_not_marked_for_all(
    client: TestClient, catalogue: Catalogue, records: Forgetting
) -> None:
    path = f"/forget/patients/{PERSON}"
    catalogue.issued_by = {"St. Anna", ""}
    trained_on_person(records, f"{PERSON}^^^St. Bernd", "d" * 64)  # its images are gone
    refused = client.put(path, json=MARK)
    assert refused.status_code == 400
    assert "St. Anna, St. Bernd" in refused.json()["detail"]
    assert PERSON not in refused.json()["detail"]
    assert records.forget_set.count() == 0
    for named in (path + "^^^St. Anna", path):
        body = MARK if named != path else {**MARK, "issuer": "St. Bernd"}
        assert client.put(named, json=body).status_code == 201
    anna, bernd = (f"{PERSON}^^^St. Anna", f"{PERSON}^^^St. Bernd")
    assert {(r.target.id, r.target.issuer) for r in records.forget_set.list()} == {
        (PERSON, "St. Anna"), (PERSON, "St. Bernd"),
    }  # fmt: skip
    seen = {}
    for request in records.forget_set.list():
        answer = client.get(f"/forget/requests/{request.request_id}").json()
        seen[request.target.issuer] = [v["version_sha256"] for v in answer["versions"]]
    assert seen == {"St. Anna": [], "St. Bernd": ["d" * 64]}
    kept, _ = records.forget_set.exclude(
        [Case(p, p, p, Path(p)) for p in (anna, bernd, f"{PERSON}^^^St. Clara")]
    )
    assert [c.person for c in kept] == [f"{PERSON}^^^St. Clara"]


def test_a_number_of_one_issuer_needs_no_issuer(
    client: TestClient, catalogue: Catalogue, records: Forgetting
) -> None:
    catalogue.issued_by = {"St. Anna", ""}
    trained_on_person(records, f"{PERSON}^^^St. Anna", "d" * 64)
    assert client.put(f"/forget/patients/{PERSON}", json=MARK).status_code == 201
    persons = (f"{PERSON}^^^St. Anna", PERSON)
    assert records.forget_set.exclude([Case(p, p, p, Path(p)) for p in persons])[0] == []


def test_an_issuer_that_no_model_saw_is_not_covered_by_another(
    client: TestClient, catalogue: Catalogue, records: Forgetting
) -> None:
    trained_on_person(records, "77^^^St. Anna", "d" * 64)
    assert client.put("/forget/patients/77^^^St. Bernd", json=MARK).status_code == 404
    assert client.put("/forget/patients/77^^^St. Anna", json=MARK).status_code == 201
    assert catalogue.asked


def test_status_of_a_study_list(client: TestClient, records: Forgetting) -> None:
    client.put(f"/forget/patients/{PERSON}", json=MARK)
    others = [f"1.2.3.{i}" for i in range(198)]
    query = [("study", uid) for uid in [STUDY, *others]] + [("series", SERIES)]
    answer = client.get("/forget/status", params=query).json()
    assert len(answer) == 200
    assert answer[STUDY]["marked"]
    assert answer[STUDY]["covers"][0]["target_kind"] == "patient"
    assert answer[SERIES]["marked"]
    assert not any(answer[uid]["marked"] for uid in others)
    assert client.get("/forget/status").json() == {}


def test_life_of_a_request(client: TestClient, records: Forgetting) -> None:
    trained_on(records)
    made = client.put(f"/forget/studies/{TRAINED}", json=MARK).json()
    path = f"/forget/requests/{made['request_id']}"
    detail = client.get(path).json()
    assert detail["next_states"] == ["approved", "withdrawn"]
    assert [version["version_sha256"] for version in detail["versions"]] == ["a" * 64]
    assert client.post(f"{path}/approve").json()["state"] == "approved"
    assert client.delete(path, params={"why": "a mistake"}).json()["state"] == "withdrawn"
    assert client.delete(path).status_code == 409
    history = client.get(path).json()["history"]
    assert [step["to_state"] for step in history] == ["requested", "approved", "withdrawn"]
    assert history[-1]["why"] == "a mistake"
    again = client.put(f"/forget/studies/{TRAINED}", json=MARK)
    assert again.status_code == 201
    assert again.json()["request_id"] != made["request_id"]
    documents = client.get("/pacs/outbox").json()["documents"]
    assert [d["state"] for d in documents] == ["requested", "approved", "withdrawn", "requested"]


def test_paging_and_filters(client: TestClient) -> None:
    for i in range(5):
        body = {"reason": "quality" if i % 2 else "wrong_label", "even_if_unknown": True}
        assert client.put(f"/forget/studies/1.2.3.{i}", json=body).status_code == 201
    page = client.get("/forget/requests", params={"limit": 2, "offset": 1}).json()
    assert (page["total"], page["limit"], page["offset"]) == (5, 2, 1)
    assert [r["target"]["id"] for r in page["requests"]] == ["1.2.3.3", "1.2.3.2"]
    quality = client.get("/forget/requests", params={"reason": "quality"}).json()
    assert quality["total"] == 2
    assert client.get("/forget/requests", params={"state": "approved"}).json()["total"] == 0
    both = client.get("/forget/requests", params={"state": ["approved", "requested"]}).json()
    assert both["total"] == 5
    one = client.get("/forget/requests", params={"target_id": "1.2.3.4"}).json()
    assert one["total"] == 1


def test_proposals_are_decided_by_a_person(client: TestClient, records: Forgetting) -> None:
    assert records.seen is not None
    propose = proposing(records.forget_set, records.seen)
    note = Proposal("mark", "retention_expired", "Expired", STUDY, purge=True)
    assert propose(note)
    assert not propose(note)
    assert propose(deleted(TRAINED))
    assert not client.get("/forget/status", params={"study": STUDY}).json()[STUDY]["marked"]
    assert client.get("/forget/status", params={"study": STUDY}).json()[STUDY]["proposals"]
    assert client.get("/pacs/outbox").json()["waiting"] == 0
    deletion, retention = client.get("/forget/requests", params={"state": "proposed"}).json()[
        "requests"
    ]
    assert "purge" in retention["note"]
    approved = client.post(f"/forget/requests/{retention['request_id']}/approve")
    assert approved.json()["state"] == "approved"
    dismissed = client.post(
        f"/forget/requests/{deletion['request_id']}/dismiss", json={"why": "moved"}
    )
    assert dismissed.json()["state"] == "dismissed"
    states = [d["state"] for d in client.get("/pacs/outbox").json()["documents"]]
    assert states == ["requested", "approved"]


def test_marking_what_is_proposed_makes_it_a_request(
    client: TestClient, records: Forgetting
) -> None:
    assert records.seen is not None
    proposing(records.forget_set, records.seen)(deleted(STUDY))
    answer = client.put(f"/forget/studies/{STUDY}", json=MARK)
    assert (answer.status_code, answer.json()["state"]) == (200, "requested")
    (shown,) = client.get("/forget/requests").json()["requests"]
    assert shown == answer.json()
    assert shown["agreed_by"] == "unknown (authentication is off)"
    assert (shown["marked_by"], shown["agreed_reason"]) == ("system", MARK["reason"])
    assert records.outbox is not None
    assert records.outbox.list()[0].payload["reason"] == MARK["reason"]


def test_a_revocation_stands_beside_the_request(client: TestClient, records: Forgetting) -> None:
    made = client.put(f"/forget/studies/{STUDY}", json=MARK).json()
    path = f"/forget/requests/{made['request_id']}"
    assert client.get(path).json()["revocation"] is None
    assert records.seen is not None
    propose = proposing(records.forget_set, records.seen)
    revoked = Proposal("withdraw", "other", "Rejection revoked", STUDY, source_document_uid="1.9")
    assert propose(revoked)
    assert not propose(revoked)
    detail = client.get(path).json()
    assert detail["revocation"]["text"] == "Rejection revoked"
    assert detail["state"] == "requested"


def test_unknown_studies_are_marked_only_on_purpose(
    client: TestClient, records: Forgetting, catalogue: Catalogue
) -> None:
    path = f"/forget/studies/{generate_uid()}"
    answer = client.put(path, json=MARK)
    assert answer.status_code == 404
    assert "even_if_unknown" in answer.json()["detail"]
    assert records.forget_set.count() == 0
    assert client.put(path, json={**MARK, "even_if_unknown": True}).status_code == 201
    catalogue.down = True  # the PACS cannot say: the mark counts
    assert client.put(f"/forget/studies/{generate_uid()}", json=MARK).status_code == 201
    catalogue.down = False
    trained_on(records)  # deleted from the PACS, but a model saw it
    assert client.put(f"/forget/studies/{TRAINED}", json=MARK).status_code == 201
    assert client.put("/forget/patients/P9", json=MARK).status_code == 201


def test_a_patient_mark_shows_the_studies_and_the_versions_that_know_them(
    client: TestClient, records: Forgetting
) -> None:
    """The studies were trained on under another number."""
    trained_on(records, OTHER)
    made = client.put(f"/forget/patients/{PERSON}", json=MARK).json()
    detail = client.get(f"/forget/requests/{made['request_id']}").json()
    assert detail["studies"] == [STUDY, OTHER]
    assert [v["version_sha256"] for v in detail["versions"]] == ["a" * 64]
    moved = Case(f"{STUDY}.1", STUDY, "another", Path("x"))
    assert records.forget_set.exclude([moved])[0] == []
    study = client.put(f"/forget/studies/{STUDY}", json=MARK).json()
    assert study["covered_by"] == [made["request_id"]]
    assert client.get(f"/forget/requests/{study['request_id']}").json()["studies"] == []


def test_a_patient_is_marked_while_the_pacs_cannot_say(
    client: TestClient, server: FastAPI, records: Forgetting, catalogue: Catalogue
) -> None:
    catalogue.down = True
    trained_on(records)
    assert client.put("/forget/patients/P9", json=MARK).status_code == 201
    (request,) = records.forget_set.list()
    assert request.studies == (TRAINED,), "what the ledger knows"
    asked = len(catalogue.asked)
    followed: Any = replace(records, sync=Background())
    server.dependency_overrides[forget.forgetting] = lambda: followed
    body = {**MARK, "even_if_unknown": True}
    assert client.put("/forget/patients/P8", json=body).status_code == 201
    assert len(catalogue.asked) == asked, "nobody needs the answer now; the background asks"
    assert followed.sync.woken == 1


def test_a_known_study_needs_no_question_to_the_pacs(
    client: TestClient, catalogue: Catalogue
) -> None:
    client.put(f"/forget/studies/{STUDY}", json=MARK)
    assert catalogue.asked == []


BAD = [
    ("PUT", "/forget/studies/" + "1." * 32 + "1", MARK),  # 65 characters
    ("PUT", "/forget/studies/1..2", MARK),
    ("PUT", "/forget/studies/.1.2", MARK),
    ("PUT", "/forget/studies/1.2;DROP TABLE run", MARK),
    ("PUT", "/forget/studies/1.2' OR '1'='1", MARK),
    ("PUT", "/forget/studies/%2e%2e", MARK),
    ("PUT", "/forget/studies/..%2f..%2fetc%2fpasswd", MARK),
    ("PUT", "/forget/series/1.2%00", MARK),
    ("PUT", "/forget/series/\u0661.\u0662", MARK),
    ("PUT", "/forget/series/" + "1" * 400, MARK),
    ("PUT", "/forget/series/" + "1" * 401, MARK),
    ("PUT", "/forget/patients/" + "p" * 65, MARK),
    ("PUT", "/forget/patients/a%5Cb", MARK),
    ("PUT", "/forget/patients/%01", MARK),
    ("PUT", "/forget/patients/%2A", {**MARK, "even_if_unknown": True}),
    ("PUT", "/forget/patients/SYN-%3F", MARK),
    ("PUT", "/forget/patients/4711^^^A", {**MARK, "issuer": "B"}),
    ("PUT", "/forget/structures/" + "l" * 65, MARK),
    ("PUT", "/forget/structures/ liver", MARK),
    ("PUT", f"/forget/studies/{STUDY}", {}),
    ("PUT", f"/forget/studies/{STUDY}", []),
    ("PUT", f"/forget/studies/{STUDY}", {"reason": "because"}),
    ("PUT", f"/forget/studies/{STUDY}", {"reason": "other"}),
    ("PUT", f"/forget/studies/{STUDY}", {"reason": "other", "note": "  "}),
    ("PUT", f"/forget/studies/{STUDY}", {**MARK, "note": "n" * 2001}),
    ("PUT", f"/forget/studies/{STUDY}", {**MARK, "note": "a\u0000b"}),
    ("PUT", f"/forget/studies/{STUDY}", {**MARK, "needed": "none"}),
    ("PUT", f"/forget/studies/{STUDY}", {**MARK, "needed": "certified"}),
    ("PUT", f"/forget/studies/{STUDY}", {**MARK, "state": "purged"}),
    ("PUT", f"/forget/studies/{STUDY}", {**MARK, "actor": "somebody else"}),
    ("PUT", f"/forget/studies/{STUDY}", {**MARK, "model": "m"}),
    ("PUT", f"/forget/studies/{STUDY}", {"reason": ["quality"]}),
    ("GET", "/forget/requests?limit=1001", None),
    ("GET", "/forget/requests?limit=-1", None),
    ("GET", "/forget/requests?limit=x", None),
    ("GET", "/forget/requests?offset=99999999999999999999", None),
    ("GET", "/forget/requests?state=done", None),
    ("GET", "/forget/requests?target=person", None),
    ("GET", "/forget/requests?target_id=%00", None),
    ("GET", "/forget/requests/..", None),
    ("GET", "/forget/requests/1", None),
    ("GET", f"/forget/requests/{'0' * 32}", None),
    ("DELETE", f"/forget/requests/{'0' * 32}", None),
    ("DELETE", f"/forget/requests/{'0' * 32}?why={'w' * 2001}", None),
    ("POST", f"/forget/requests/{'0' * 32}/approve", None),
    ("POST", f"/forget/requests/{'0' * 32}/dismiss", {"why": ""}),
    ("POST", "/forget/requests/' OR 1=1 --/approve", None),
    ("GET", "/forget/status?study=1.2.x", None),
    ("GET", "/forget/status?series=" + "1" * 65, None),
    ("GET", "/forget/status?" + "&".join(f"study=1.{i}" for i in range(1, 1002)), None),
    ("GET", "/runs/1", None),
    ("GET", f"/runs/{'0' * 32}", None),
    ("GET", f"/runs/{'0' * 32}/events", None),
    ("POST", f"/runs/{'0' * 32}/cancel", None),
    ("GET", "/runs?state=dead", None),
    ("GET", "/ledger?limit=0.5", None),
    ("GET", "/ledger/versions", None),
    ("GET", "/ledger/versions?study=1.2&series=1.3", None),
    ("GET", "/ledger/versions?study=../..", None),
    ("GET", "/ledger/studies?version=abc", None),
    ("GET", f"/ledger/studies?version={'0' * 64}", None),
    ("GET", "/pacs/outbox?limit=1001", None),
]


@pytest.mark.parametrize(("method", "path", "body"), BAD)
def test_bad_input_is_refused_with_a_sentence(
    client: TestClient, records: Forgetting, method: str, path: str, body: Any
) -> None:
    client.put(f"/forget/series/{SERIES}", json=MARK)
    before = everything(records)
    answer = client.request(method, path, json=body)
    assert 400 <= answer.status_code < 500
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert len(detail) > 8
    assert len(detail) < 1500
    assert everything(records) == before


def test_a_patient_is_never_repeated_in_a_message(client: TestClient) -> None:
    answer = client.put("/forget/patients/M%C3%BCller%5CAnna", json=MARK)
    assert answer.status_code == 400
    assert "ller" not in answer.json()["detail"]


def test_roles(client: TestClient, sign_in: SignIn) -> None:
    path = f"/forget/studies/{STUDY}"
    sign_in("")
    assert client.get("/forget/requests").status_code == 401
    assert client.put(path, json=MARK).status_code == 401
    sign_in("eve", "somebody")
    assert client.get("/forget/requests").status_code == 403
    sign_in("viewer", "user")
    assert client.get("/forget/requests").status_code == 200
    assert client.put(path, json=MARK).status_code == 403
    sign_in("anna", "annotator")
    made = client.put(path, json=MARK)
    assert made.status_code == 201
    assert made.json()["marked_by"] == "anna"
    request = f"/forget/requests/{made.json()['request_id']}"
    assert made.json()["agreed_by"] == ""
    assert client.post(f"{request}/approve").status_code == 403
    assert client.post(f"{request}/dismiss", json={}).status_code == 403
    assert client.post("/pacs/outbox/retry").status_code == 403
    assert client.post(f"/runs/{'0' * 32}/cancel").status_code == 403
    sign_in("bert", "annotator")
    assert client.delete(request).status_code == 403
    assert client.get(request).json()["state"] == "requested"
    sign_in("viewer", "user")
    assert client.delete(request).status_code == 403
    sign_in("anna", "annotator")
    assert client.delete(request).json()["state"] == "withdrawn"
    other = client.put(path, json=MARK).json()["request_id"]
    sign_in("root", "admin")
    assert client.post(f"/forget/requests/{other}/approve").json()["state"] == "approved"
    assert client.delete(f"/forget/requests/{other}").json()["state"] == "withdrawn"
    history = client.get(f"/forget/requests/{other}").json()["history"]
    assert [(s["actor"], s["role"]) for s in history] == [
        ("anna", "monailabel-annotator"),
        ("root", "monailabel-admin"),
        ("root", "monailabel-admin"),
    ]


def test_stock_clients_mark_the_study_of_the_image(records: Forgetting) -> None:
    mark = marking(lambda: records)
    done = mark(SERIES, "forget", "other", "anna", False)
    assert isinstance(done, Marked)
    assert done.created
    assert records.forget_set.get(done.request_id or "").target.id == STUDY
    assert not mark(SERIES, "forget", "quality", "anna", False).created
    with pytest.raises(ForbiddenError):
        mark(SERIES, "keep", "other", "bert", False)
    assert mark(SERIES, "keep", "other", "anna", False).state == "withdrawn"
    assert mark(SERIES, "keep", "other", "anna", False).request_id is None
    with pytest.raises(NotFoundError):
        mark("1.2.3", "forget", "other", "anna", False)


def test_ledger_routes(client: TestClient, records: Forgetting) -> None:
    trained_on(records)
    trained_on(records, "1.2.840.8", "d" * 64, "q" * 32)
    page = client.get("/ledger", params={"limit": 1}).json()
    assert (page["total"], len(page["rows"])) == (2, 1)
    assert page["rows"][0]["version_sha256"] == "d" * 64
    verified = client.get("/ledger/verify").json()
    assert (verified["rows"], verified["faults"]) == (2, [])
    assert verified["digest"] == page["rows"][0]["digest"]
    (case,) = client.get(f"/ledger/runs/{'r' * 32}/cases").json()
    assert (case["study"], case["role"]) == (TRAINED, "train")
    for query in ({"study": TRAINED}, {"series": f"{TRAINED}.1"}):
        (version,) = client.get("/ledger/versions", params=query).json()
        assert version["version_sha256"] == "a" * 64
    assert len(client.get("/ledger/versions", params={"person": "P9"}).json()) == 2
    assert client.get("/ledger/versions", params={"study": "1.2.3"}).json() == []
    (study,) = client.get("/ledger/studies", params={"version": "a" * 64}).json()
    assert study["study"] == TRAINED


_KILLED = """
import os, sys
from segunlearn.records.runs import Runs
from segunlearn.records.store import open_store
print(Runs(open_store(sys.argv[1])).start("train", "segmentation", {}), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("asked", ["list", "one", "events", "cancel"])
def test_a_run_whose_process_was_killed_does_not_run(
    client: TestClient, store: Store, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Viewers follow these routes alone: a training that was out of memory ran for ever there."""
    monkeypatch.setattr(runs, "ALIVE_SECONDS", 0.2)
    monkeypatch.setattr(runs, "LONGEST_SECONDS", 5.0)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(store.path)],
        stdout=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    run = killed.stdout.strip()
    if asked == "list":
        assert [r["state"] for r in client.get("/runs").json()] == ["interrupted"]
        assert client.get("/runs?state=running").json() == []
    elif asked == "one":
        assert "killed" in client.get(f"/runs/{run}").json()["message"]
    elif asked == "events":
        assert "event: interrupted" in client.get(f"/runs/{run}/events").text
    else:
        assert "(interrupted)" in client.post(f"/runs/{run}/cancel").json()["detail"]


def test_runs_and_their_events(client: TestClient, records: Forgetting) -> None:
    run = records.runs.start("train", "segmentation", {"epochs": 2}, requested_by="anna")
    records.runs.update(run, Progress("train", 1, 4, {"loss": 0.5}, 3.0))
    assert client.get(f"/runs/{run}").json()["progress"]["fraction"] == 0.25
    assert [r["run_id"] for r in client.get("/runs", params={"kind": "train"}).json()] == [run]
    assert client.get("/runs", params={"kind": "unlearn"}).json() == []
    assert client.post(f"/runs/{run}/cancel").json()["cancel_requested"]
    records.runs.finish(run, "cancelled", "stopped")
    assert client.post(f"/runs/{run}/cancel").status_code == 409
    whole = client.get(f"/runs/{run}/events")
    assert whole.headers["content-type"].startswith("text/event-stream")
    ids = [int(line[4:]) for line in whole.text.splitlines() if line.startswith("id: ")]
    assert ids == sorted(ids)
    assert whole.text.rstrip().endswith("event: end\ndata: {}")
    assert '"loss": 0.5' in whole.text
    last = client.get(f"/runs/{run}/events", headers={"Last-Event-ID": str(ids[-2])})
    assert [line for line in last.text.splitlines() if line.startswith("id: ")] == [
        f"id: {ids[-1]}"
    ]
    nothing_new = client.get(f"/runs/{run}/events", params={"after": 10**6})
    assert "id: " not in nothing_new.text
    assert nothing_new.text.rstrip().endswith("event: end\ndata: {}")


def test_outbox_of_files(client: TestClient, server: FastAPI, records: Forgetting) -> None:
    assert client.post("/pacs/outbox/retry").status_code == 200
    files = replace(records, outbox=None, opaque=True, catalogue=None)
    server.dependency_overrides[forget.forgetting] = lambda: files
    assert client.get("/pacs/outbox").status_code == 404
    answer = client.put("/forget/studies/hippocampus_001", json=MARK)
    assert answer.status_code == 201
    assert client.put("/forget/studies/..", json=MARK).status_code in (400, 404, 405)
    status = client.get("/forget/status", params={"series": "hippocampus_001"}).json()
    assert "hippocampus_001" in status


def test_every_route_names_its_refusals(server: FastAPI) -> None:
    paths = server.openapi()["paths"]
    assert len(paths) >= 15
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert {"401", "403", "422", "503"} <= set(operation["responses"]), (method, path)
            assert operation["summary"], (method, path)
