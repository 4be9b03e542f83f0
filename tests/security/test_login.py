"""Signing in: tokens, sessions, the issuer's page, roles, and what stands in the trail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app_sources import publish_tiny, stock_client_module
from guarded_server import Place, serving
from oidc_issuer import TestIssuer
from segunlearn.app.routes import platform, tasks
from segunlearn.app.security import health
from segunlearn.app.security.failures import LIMIT, Failures
from segunlearn.records.access_tokens import AccessTokens

PAGE = {"Accept": "text/html,application/xhtml+xml"}
MARK = {"reason": "consent_withdrawn"}
#: Method, path, body, and the weakest role that may.
RIGHTS = [
    ("GET", "/whoami", None, "user"),
    ("GET", "/metrics", None, "user"),
    ("GET", "/forget/requests", None, "user"),
    ("PUT", "/forget/studies/1.2.3", MARK, "annotator"),
    ("POST", "/forget/requests/ID/approve", None, "admin"),
    ("GET", "/audits/" + "a" * 32 + "/report", None, "admin"),  # with pictures
]


def test_each_role_may_what_it_is_for_and_no_more(place: Place) -> None:
    roles = ("user", "annotator", "reviewer", "admin")
    request = place.records.forget_set.mark("study", "9.9", "consent_withdrawn", actor="x")[0]
    for role in roles:
        with place.client(place.token(role)) as client:
            for method, path, body, weakest in RIGHTS:
                path = path.replace("ID", request.request_id)
                answer = client.request(method, path, json=body)
                may = roles.index(role) >= roles.index(weakest)
                good = answer.status_code < 400 or answer.status_code == 409
                assert good if may else answer.status_code == 403, (role, path, answer.text)


def test_what_was_done_stands_in_the_trail_with_who_did_it(place: Place) -> None:
    with place.client(place.token("annotator", "Dr. Meyer")) as client:
        marked = client.put("/forget/studies/1.2.3", json=MARK).json()["request_id"]
        assert client.post(f"/forget/requests/{marked}/approve").status_code == 403
        client.get(f"/audits/{'a' * 32}/report")  # it has pictures
        client.get(f"/audits/{'a' * 32}")
    with place.client("segunlearn_000000000000_" + "x" * 43) as client:
        assert client.get("/forget/requests").status_code == 401
    with place.client(place.token("admin", "the chief")) as client:
        client.post(f"/forget/requests/{marked}/approve")
    assert place.trail() == [
        ("mark", "Dr. Meyer", "done"),
        ("forbidden", "Dr. Meyer", "refused"),
        ("read_report", "Dr. Meyer", "refused"),
        ("read_report", "Dr. Meyer", "done"),
        ("login_failure", "", "refused"),
        ("approve", "the chief", "done"),
    ]
    assert "1.2.3" not in str([*place.records.trail.every()])
    assert place.records.trail.verify() == []


def test_what_was_refused_names_no_patient(place: Place) -> None:
    """The path's words are the caller's, and the trail cannot be erased."""
    place.server.include_router(tasks.router)
    place.server.include_router(platform.router)
    with place.client(place.token("user", "Dr. Meyer")) as client:
        for method, path in (
            ("PUT", "/forget/patients/mustermann"),
            ("PUT", "/forget/structures/mustermann"),
            ("POST", "/forget/requests/mustermann/approve"),
            ("POST", "/train/mustermann"),
            ("GET", "/model/mustermann"),
        ):
            assert client.request(method, path, json=MARK).status_code == 403, path
    assert [(r.action, r.what, r.note) for r in place.records.trail.every()] == [
        ("forbidden", "", "PUT /forget/patients/{patient_id:path}"),
        ("forbidden", "", "PUT /forget/structures/{label}"),
        ("forbidden", "", "POST /forget/requests/{request_id}/approve"),
        ("train", "", ""),
        ("read_images", "", ""),
    ]


@pytest.mark.usefixtures("full_disk")
def test_a_report_that_cannot_be_recorded_is_not_sent(place: Place) -> None:
    with place.client(place.token("admin")) as client:
        answer = client.get(f"/audits/{'a' * 32}/report")
        assert answer.status_code == 503
        assert "a report" not in answer.text
        assert client.get("/whoami").status_code == 200


def test_a_revoked_token_is_useless_at_once_and_so_is_its_session(place: Place) -> None:
    tokens = AccessTokens(place.records.store)
    text, made = tokens.create("x", "user", 1)
    with place.client(text) as client, place.client() as browser:
        assert browser.post("/login", data={"token": text}).status_code == 303
        assert client.get("/whoami").status_code == browser.get("/whoami").status_code == 200
        tokens.revoke(made.token_id)
        assert client.get("/whoami").status_code == browser.get("/whoami").status_code == 401


def test_a_browser_signs_in_and_is_led_back(place: Place) -> None:
    with place.client() as browser:
        first = browser.get("/ohif/viewer?StudyInstanceUIDs=1.2", headers=PAGE)
        assert first.status_code == 303
        assert first.headers["location"] == "/login?next=%2Fohif%2Fviewer%3FStudyInstanceUIDs%3D1.2"
        page = browser.get(first.headers["location"], headers=PAGE)
        where = re.search(r'name="next" value="([^"]+)"', page.text)
        assert where is not None
        assert "script" not in page.text
        wrong = browser.post("/login", data={"token": "wrong", "next": "/"})
        assert wrong.status_code == 401
        assert "unknown" in wrong.text
        done = browser.post("/login", data={"token": place.token("user"), "next": where[1]})
        assert (done.status_code, done.headers["location"]) == (303, where[1])
        cookie = done.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert browser.get("/ohif/", headers=PAGE).status_code == 200
        assert browser.get("/whoami").json()["name"] == "the user"
        assert browser.post("/logout").status_code == 303
        assert browser.get("/whoami").status_code == 401


@pytest.mark.parametrize(
    "where", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:1", "/ x"]
)
def test_nobody_is_led_elsewhere(place: Place, where: str) -> None:
    with place.client() as browser:
        page = browser.get("/login", params={"next": where})
        assert "evil" not in page.text
        done = browser.post("/login", data={"token": place.token("user"), "next": where})
        assert done.headers["location"] == "/"


def test_files_of_the_viewer_are_for_all_and_data_is_not(place: Place) -> None:
    with place.client() as client:
        for path in ("/ohif/app-config.js", "/segunlearn/extension.js", "/health/live",
                     "/health/ready", "/auth/", "/ohif/?token=own"):  # fmt: skip
            assert client.get(path).status_code == 200, path
        assert client.get("/ohif/?token=own", headers=PAGE).status_code == 200
        for path in ("/whoami", "/changes", "/openapi.json", "/docs", "/", "/metrics", "/nothing",
                     "/ohif/../whoami", "/health/", "/forget/requests?token=own"):  # fmt: skip
            answer = client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/ohif/x", "/segunlearn/extension.js", "/health/live"):
            assert client.post(path).status_code == 401
        for header in ("Basic dTpw", "Bearer", "bearer x y", "Token x"):
            assert client.get("/whoami", headers={"Authorization": header}).status_code == 401
    assert place.trail()[-1][0] == "login_failure"


def test_the_unchanged_client_of_3d_slicer_signs_in(place: Place) -> None:
    client = stock_client_module().MONAILabelClient(place.url)
    assert client.auth_enabled()
    assert not client.auth_valid_token()
    client.update_auth(client.auth_token("anybody", place.token("annotator")))
    assert client.auth_valid_token()


def test_a_flood_of_failures_does_not_fill_the_disk(place: Place) -> None:
    with place.client("x") as client:
        answers = [client.get("/whoami") for _ in range(90)]
    assert [a.status_code for a in answers] == [401] * LIMIT + [429] * (90 - LIMIT)
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert len(place.trail()) == LIMIT
    assert "segunlearn_login_failures_total 90" in _metrics(place)


def test_guessing_is_slowed_down_and_stops_nobody_else(place: Place) -> None:
    """Failures of the page and of the password route count together; good tokens still pass."""
    good = place.token("user")
    with place.client() as client:
        for number in range(LIMIT):
            path = ("/login", "/auth/token")[number % 2]
            given = {"token": "x", "password": "x", "username": "x"}
            assert client.post(path, data=given).status_code == 401
        for path in ("/login", "/auth/token"):
            answer = client.post(path, data={"token": good, "password": good, "username": "x"})
            assert answer.status_code == 429
        assert client.get("/login").status_code == 200
        with_token = {"Authorization": f"Bearer {good}"}
        assert client.get("/whoami", headers=with_token).status_code == 200
        elsewhere = {"X-Forwarded-For": "192.0.2.9"}
        assert client.post("/login", data={"token": good}, headers=elsewhere).status_code == 303


def test_failures_are_forgotten_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    failures = Failures(lambda: now[0])
    for _ in range(LIMIT):
        assert failures.wait("a") == 0
        failures.add("a")
    assert failures.wait("a") == 60
    assert failures.wait("b") == 0
    now[0] += 59.5
    assert failures.wait("a") == 1
    now[0] += 0.5
    assert failures.wait("a") == 0
    failures.add("a")
    assert failures.wait("a") == 0
    monkeypatch.setattr("segunlearn.app.security.failures._MOST", 3)
    for name in "cdefg":
        failures.add(name)
    assert len(failures._seen) == 3


def _metrics(place: Place) -> str:
    with place.client(place.token("user")) as client:
        return client.get("/metrics").text


def test_figures_are_in_the_text_format_and_about_no_patient(place: Place) -> None:
    place.records.forget_set.mark("patient", "SYN-Mustermann", "consent_withdrawn", actor="x")
    text = _metrics(place)
    values = {}
    for line in text.splitlines():
        found = re.fullmatch(r'(\w+(?:\{\w+="[^"]*"(?:,\w+="[^"]*")*\})?) (\S+)', line)
        assert line.startswith(("# HELP ", "# TYPE ")) or found, line
        if found:
            values[found[1]] = float(found[2])
    assert values["segunlearn_forget_requests_live"] == 1
    assert values["segunlearn_trail_rows"] == 1
    assert values["segunlearn_requests_open"] == 1  # this one
    assert "Mustermann" not in text  # a number may stand in a clock's digits by chance


def test_ready_says_what_is_wrong(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.client() as client:
        good = {"ready": True, "store": "good", "home": "good", "model": "good"}
        assert client.get("/health/ready").json() == good
        monkeypatch.setattr(health, "_FREE", 1 << 62)
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json() == {**good, "ready": False, "home": "fault"}
        assert client.get("/health/live").status_code == 200


def test_not_ready_while_the_weights_in_service_are_gone_or_changed(place: Place) -> None:
    """Nobody could segment; the manifest alone says nothing of the weights' own file."""
    assert place.records.store.path is not None
    weights = publish_tiny(place.records.store.path.parent).weights
    whole = weights.read_bytes()
    with place.client() as client:
        assert client.get("/health/ready").status_code == 200
        for damage in (weights.unlink, lambda: weights.write_bytes(whole[:100])):
            damage()
            answer = client.get("/health/ready")
            assert (answer.status_code, answer.json()["model"]) == (503, "fault")
        weights.write_bytes(whole)
        assert client.get("/health/ready").status_code == 200


def test_the_issuer_signs_a_browser_in(sso: Place) -> None:
    """The code flow with PKCE, every redirect followed as a browser does."""
    with sso.client(follow_redirects=True) as browser:
        page = browser.get("/login?next=/whoami")
        link = re.search(r'href="([^"]+)"', page.text)
        assert link is not None
        answer = browser.get(link[1])
        assert answer.url.path == "/whoami"
        assert (answer.json()["name"], answer.json()["may_mark"]) == ("meyer", True)
        assert answer.json()["may_decide"] is False
    assert sso.trail() == [("login", "meyer", "done")]


def test_an_answer_of_the_issuer_to_somebody_else_is_not_taken(sso: Place) -> None:
    """Signing a victim's browser in as the attacker: the state is not this browser's."""
    with sso.client() as attacker, sso.client() as victim:
        to_issuer = attacker.get("/login/oidc?next=/")
        back = attacker.get(to_issuer.headers["location"]).headers["location"]
        for answer in (victim.get(back), victim.get("/login/callback?state=&code=c0de")):
            assert answer.status_code == 401
            assert "set-cookie" not in answer.headers
        assert attacker.get(back).status_code == 303
        assert attacker.get(back).status_code == 401  # once


def test_bearer_tokens_and_passwords_of_the_issuer(sso: Place, issuer: TestIssuer) -> None:
    with sso.client(issuer.token()) as client:
        assert client.put("/forget/studies/1.2.3", json=MARK).status_code == 201
        assert client.get("/auth/token/valid").json()["email"] == "meyer@example.org"
    with sso.client(issuer.token(realm_access={"roles": ["stranger"]})) as client:
        answer = client.get("/whoami")
        assert answer.status_code == 403
        assert "no role" in answer.json()["detail"]
        assert client.get("/ohif/app-config.js").status_code == 200
    client = stock_client_module().MONAILabelClient(sso.url)
    with pytest.raises(Exception, match="401"):
        client.auth_token("meyer", "wrong")
    client.update_auth(client.auth_token("meyer", "right"))
    assert client.auth_valid_token()


def test_while_login_is_off_nothing_changes_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "home", monkeypatch) as place, place.client() as client:
        assert client.get("/whoami").json()["may_decide"] is True
        assert client.get("/auth/").json()["enabled"] is False
        assert client.post("/auth/token", data={"password": "x"}).status_code == 409
        assert client.get("/whoami", headers={"Host": "evil.example"}).status_code == 421
        forwarded = {"X-Forwarded-For": "192.0.2.7"}
        assert client.get("/whoami", headers=forwarded).status_code == 403
    everyone = serving(tmp_path / "open", monkeypatch, let_everyone_in=True)
    with everyone as place, place.client() as client:
        assert client.get("/whoami", headers={"Host": "evil.example"}).status_code == 200
