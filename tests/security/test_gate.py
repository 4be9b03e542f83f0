"""What strangers can cost the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guarded_server import Place

FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize("path", ["/login", "/auth/token"])
def test_a_strangers_body_is_small(place: Place, path: str) -> None:
    """It is parsed before anybody is known: to memory, and files of a form to the disk."""

    def pieces() -> Iterator[bytes]:  # no length is announced
        yield from (b"token=", *[bytes(1 << 10)] * 17)

    short, much = {"token": "x", "password": "x"}, 17 << 10
    with place.client() as client:
        for answer in (
            client.post(path, data={**short, "more": "x" * much}),
            client.post(path, data=short, files={"file": ("x", bytes(much))}),
            client.post(path, content=pieces(), headers=FORM),
        ):
            assert answer.status_code == 413
            assert "larger than 16 KiB" in answer.json()["detail"]
        longest = {
            "token" if path == "/login" else "password": "x" * 8192,
            "next": "/" + "%" * 2000,
        }
        assert client.post(path, data=longest).status_code == 401
