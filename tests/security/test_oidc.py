"""Tokens of an issuer: which are good, which are not, and what its keys do meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import jwt
import pytest

from oidc_issuer import AUDIENCE, Key, TestIssuer, running_issuer
from segunlearn.app.security import oidc
from segunlearn.app.security.identity import GenuineTokenError, Identity, NotSignedInError
from segunlearn.app.security.oidc import Issuer
from segunlearn.errors import UnavailableError


@pytest.fixture(scope="module")
def shared() -> Iterator[TestIssuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def issuer(shared: TestIssuer) -> Iterator[TestIssuer]:
    keys, name = list(shared.keys), shared.issuer
    shared.asked.clear()
    yield shared
    shared.keys, shared.issuer, shared.down = keys, name, False


@pytest.fixture
def ours(issuer: TestIssuer) -> Issuer:
    return Issuer(issuer.issuer, AUDIENCE)


def test_good_tokens_of_both_kinds(issuer: TestIssuer, ours: Issuer) -> None:
    expected = Identity("meyer", "annotator", "meyer@example.org")
    for key in issuer.keys:
        assert ours.identify(issuer.token(key)) == expected
    assert ours.identify(issuer.token(aud=["other", AUDIENCE])) == expected
    assert issuer.asked == ["discovery", "jwks"]  # asked once for all of them


BAD: list[tuple[str, dict[str, Any], str]] = [  # a timedelta counts from the test's own moment
    ("expired", {"exp": timedelta(minutes=-2)}, "expired"),
    ("without end", {"exp": None}, "exp"),
    ("not yet", {"nbf": timedelta(minutes=10)}, "not yet"),
    ("from the future", {"iat": timedelta(minutes=10)}, "not yet"),
    ("another audience", {"aud": "account"}, "[Aa]udience"),
    ("no audience", {"aud": None}, "aud"),
    ("another issuer", {"iss": "https://evil.example"}, "issuer"),
    ("no issuer", {"iss": None}, "iss"),
    ("an ID token", {"typ": "ID"}, "access token"),
    ("a refresh token", {"typ": "Refresh"}, "access token"),
    ("a logout token", {"typ": "Logout"}, "access token"),
    ("an ID token of another issuer", {"at_hash": "x", "typ": None}, "access token"),
    ("an ID token with its code", {"c_hash": "x", "typ": None}, "access token"),
    ("an event", {"events": {"logout": {}}, "typ": None}, "access token"),
    ("an ID token by its use", {"token_use": "id", "typ": None}, "access token"),
    ("nobody", {"sub": None, "preferred_username": None}, "nobody"),
]


@pytest.mark.parametrize(("claims", "word"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_claims(issuer: TestIssuer, ours: Issuer, claims: dict[str, Any], word: str) -> None:
    ours.identify(issuer.token())
    now = time.time()
    given = {
        name: int(now + value.total_seconds()) if isinstance(value, timedelta) else value
        for name, value in claims.items()
    }
    with pytest.raises(GenuineTokenError, match=word):
        ours.identify(issuer.token(**given))


def test_the_header_tells_the_kind_too(issuer: TestIssuer, ours: Issuer) -> None:
    for typ in ("logout+jwt", "application/secevent+jwt", "Refresh"):
        with pytest.raises(GenuineTokenError, match="access token"):
            ours.identify(issuer.token(headers={"typ": typ}, typ=None))
    for typ in ("at+jwt", "application/at+jwt", "JWT"):
        good = issuer.token(headers={"typ": typ}, typ=None, nonce="n", token_use="access")
        assert ours.identify(good).name == "meyer"


def test_clocks_may_differ_by_a_minute(issuer: TestIssuer, ours: Issuer) -> None:
    now = int(time.time())
    ours.identify(issuer.token(exp=now - 30))
    ours.identify(issuer.token(iat=now + 30, nbf=now + 30))


def test_signatures_that_are_none_of_the_issuer(issuer: TestIssuer, ours: Issuer) -> None:
    good = issuer.token()
    head, body, signature = good.split(".")
    payload = jwt.decode(good, options={"verify_signature": False})
    public = issuer.keys[0].shown()
    with_public_key = jwt.encode(
        payload, public["n"] * 2, algorithm="HS256", headers={"kid": "rsa-1"}
    )
    unsigned = jwt.encode(payload, None, algorithm="none", headers={"kid": "rsa-1"})
    for forged in (
        issuer.token(Key("rsa-1"), exp=1),
        with_public_key,
        unsigned,
        issuer.token(Key("rsa-1")),
        issuer.token(Key("unknown")),
        issuer.token(issuer.keys[1], headers={"kid": "rsa-1"}),
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{head}.{body}.",
        f"{head}.{body[:-3]}xyz.{signature}",
        "", "x", "a.b.c", good + "\n" * 3 + "x", "ÿ" * 30,
    ):  # fmt: skip
        with pytest.raises(NotSignedInError) as told:
            ours.identify(forged)
        assert not isinstance(told.value, GenuineTokenError), "this was a guess"


def test_a_token_brings_no_key_of_its_own(issuer: TestIssuer, ours: Issuer) -> None:
    own = Key("mine")
    headers = {"jwk": own.shown(), "jku": "http://127.0.0.1:9/jwks", "x5u": "http://127.0.0.1:9"}
    with pytest.raises(NotSignedInError, match="does not show"):
        ours.identify(issuer.token(own, headers=headers))


def test_a_new_key_is_fetched_and_an_old_one_forgotten(
    issuer: TestIssuer, ours: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.identify(issuer.token())
    old, new = issuer.keys[0], Key("rsa-2")
    issuer.keys = [new, issuer.keys[1]]
    with pytest.raises(NotSignedInError):  # just asked: unknown keys do not make us ask at once
        ours.identify(issuer.token(new))
    assert issuer.asked.count("jwks") == 1
    monkeypatch.setattr(oidc, "_PAUSE", 0.0)
    assert ours.identify(issuer.token(new)).name == "meyer"
    with pytest.raises(NotSignedInError, match="does not show"):
        ours.identify(issuer.token(old))


def test_while_the_issuer_is_away_its_known_keys_are_used_for_a_day(
    issuer: TestIssuer, ours: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.identify(issuer.token())
    issuer.down = True
    monkeypatch.setattr(oidc, "_PAUSE", -1.0)
    monkeypatch.setattr(oidc, "_FRESH", -1.0)
    assert ours.identify(issuer.token()).name == "meyer"
    monkeypatch.setattr(oidc, "_STALE", -1.0)
    with pytest.raises(UnavailableError, match="cannot be asked"):
        ours.identify(issuer.token())
    with pytest.raises(UnavailableError):
        Issuer(issuer.issuer, AUDIENCE).identify(issuer.token())


def test_a_key_that_an_issuer_could_not_show_is_nobodys_failure(
    issuer: TestIssuer, ours: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.identify(issuer.token())
    issuer.down, new = True, Key("rsa-2")
    issuer.keys = [new]
    monkeypatch.setattr(oidc, "_PAUSE", -1.0)
    for pause in (-1.0, 10.0):  # asked, and just asked
        monkeypatch.setattr(oidc, "_PAUSE", pause)
        with pytest.raises(UnavailableError):
            ours.identify(issuer.token(new))
    issuer.down = False
    monkeypatch.setattr(oidc, "_PAUSE", -1.0)
    assert ours.identify(issuer.token(new)).name == "meyer"
    with pytest.raises(NotSignedInError, match="does not show"):
        ours.identify(issuer.token(Key("unknown")))


def test_an_issuer_that_does_not_answer_keeps_nobody_waiting_whose_key_is_known(
    issuer: TestIssuer, ours: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, tries = issuer.token(), []
    ours.identify(token)

    def hang(address: str) -> dict[str, Any]:
        tries.append(address)
        time.sleep(0.4)
        raise UnavailableError("the issuer cannot be asked.")

    monkeypatch.setattr(oidc, "_get_json", hang)
    monkeypatch.setattr(oidc, "_PAUSE", 0.3)
    monkeypatch.setattr(oidc, "_FRESH", -1.0)
    ours._tried_at = -1e9
    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        took = list(pool.map(lambda _: (ours.identify(token), time.monotonic())[1], range(6)))
    assert sum(end - started > 0.3 for end in took) == len(tries) == 1, "one asks, the others go on"
    monkeypatch.setattr(oidc, "_STALE", -1.0)
    with pytest.raises(UnavailableError):  # also while nobody asks
        ours.identify(token)


def test_an_issuer_that_calls_itself_otherwise_is_not_believed(issuer: TestIssuer) -> None:
    configured = issuer.issuer
    issuer.issuer = "https://evil.example"
    with pytest.raises(UnavailableError, match="calls itself"):
        Issuer(configured, AUDIENCE).identify(issuer.token())


def test_roles_that_are_not_ours_count_nothing(issuer: TestIssuer, ours: Issuer) -> None:
    for access in ({"roles": ["admin", 7, None]}, {"roles": "monailabel-admin"}, [], "x", None):
        assert ours.identify(issuer.token(realm_access=access)).role == ""
    both = {"roles": ["monailabel-user", "monailabel-admin"]}
    user = ours.identify(issuer.token(realm_access=both)).as_user()
    assert user.roles == [f"monailabel-{r}" for r in ("user", "annotator", "reviewer", "admin")]
