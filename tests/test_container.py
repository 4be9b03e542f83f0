"""The files of the container say what docs/deployment.md promises; no image is built here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
IMAGE = (ROOT / "container" / "Containerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(
    (ROOT / "container" / "compose.yaml").read_text(encoding="utf-8")
)
WITH_ISSUER: dict[str, Any] = yaml.safe_load(
    (ROOT / "container" / "compose.oidc.yaml").read_text(encoding="utf-8")
)
NGINX = (ROOT / "container" / "nginx.conf").read_text(encoding="utf-8")


def instructions(word: str) -> list[str]:
    joined = re.sub(r"\\\n", " ", IMAGE)
    return [
        line[len(word) :].strip() for line in joined.splitlines() if line.startswith(f"{word} ")
    ]


def test_the_image_is_built_from_the_tested_versions() -> None:
    """Every installation is bound by the constraints, on the Python of the Makefile."""
    installs = re.findall(r"pip install[^&\n]*", re.sub(r"\\\n", " ", IMAGE))
    assert len(installs) == 3
    assert all("--constraint /src/constraints.txt" in line for line in installs)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "(3, 11) <= v[:2] < (3, 12)" in makefile
    assert all("/python:3.11-" in image for image in instructions("FROM"))
    for pinned in re.findall(r"(?:torch|monailabel)==[\w.+]+", IMAGE):
        assert pinned in makefile
    for copied in (words.split()[:-1] for words in instructions("COPY") if "--from" not in words):
        assert all((ROOT / name).exists() for name in copied), copied


def test_it_runs_without_rights() -> None:
    last = IMAGE[IMAGE.rindex("FROM ") :]
    assert instructions("USER") == ["10001:10001"]
    assert last.index("USER ") < last.index("ENTRYPOINT")
    assert "--login" in instructions("CMD")[0]
    assert "sudo" not in IMAGE


def test_it_writes_only_what_is_a_volume() -> None:
    (volumes,) = instructions("VOLUME")
    for name, place in re.findall(r"(SEGUNLEARN_\w+|HOME)=(\S+)", IMAGE):
        assert any(place.startswith(v) for v in re.findall(r'"([^"]+)"', volumes)), name


@pytest.mark.parametrize("name", ["proxy", "segunlearn", "orthanc"])
def test_every_service_is_confined(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert ("ports" in service) == (name == "proxy")
    assert "privileged" not in service
    image = service["image"]
    assert name == "segunlearn" or re.search(r":\d+\.\d+", image), "a version is named"


def test_the_archive_and_the_server_have_no_way_out() -> None:
    networks = COMPOSE["networks"]
    for name in ("segunlearn", "orthanc"):
        assert all(networks[n]["internal"] for n in COMPOSE["services"][name]["networks"])
    assert "outside" not in COMPOSE["services"]["segunlearn"]["networks"]
    assert COMPOSE["services"]["segunlearn"]["user"] == "10001:10001"
    text = (ROOT / "container" / "compose.yaml").read_text(encoding="utf-8")
    assert not re.search(r"(?i)password:?\s*['\"]?[a-z0-9]{6,}", text), "no secret is written here"


def test_nobody_else_is_given_the_proxys_address() -> None:
    """The server starts before the proxy, and would be given the first address that is free."""
    (config,) = COMPOSE["networks"]["inside"]["ipam"]["config"]
    proxy = ip_address(COMPOSE["services"]["proxy"]["networks"]["inside"]["ipv4_address"])
    subnet, handed_out = ip_network(config["subnet"]), ip_network(config["ip_range"])
    assert proxy in subnet
    assert proxy not in handed_out
    assert handed_out.subnet_of(subnet)


def test_only_the_server_gets_a_way_out_to_the_issuer() -> None:
    assert set(WITH_ISSUER) == {"services", "networks"}
    ((name, changed),) = WITH_ISSUER["services"].items()
    assert name == "segunlearn"
    assert set(changed) == {"command", "environment", "networks"}
    assert set(changed["networks"]) == {*COMPOSE["services"][name]["networks"], "issuer"}
    assert WITH_ISSUER["networks"] == {"issuer": {}}
    before, after = COMPOSE["services"][name]["command"], changed["command"]
    assert after.startswith(before.strip().removesuffix("--login tokens") + "--login oidc --issuer")
    assert not set(changed["environment"]) & set(COMPOSE["services"][name]["environment"])


def test_the_proxy_says_who_calls_and_speaks_only_tls() -> None:
    proxy = COMPOSE["services"]["proxy"]["networks"]["inside"]["ipv4_address"]
    assert COMPOSE["services"]["segunlearn"]["environment"]["FORWARDED_ALLOW_IPS"] == proxy
    assert NGINX.count("proxy_pass ") == NGINX.count("X-Forwarded-For $remote_addr") == 2
    assert NGINX.count("X-Forwarded-Proto https") == 2
    assert re.findall(r"listen (.+);", NGINX) == ["443 ssl"]
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in NGINX
    assert "proxy_buffering off" in NGINX  # events reach the viewer at once
    assert "access_log off" in NGINX
    assert "error_log /dev/stderr crit;" in NGINX  # lesser errors write the request line


def test_strangers_cannot_fill_the_proxys_memory() -> None:
    """Where it keeps bodies before it passes them on, they are as small as the gate wants them."""
    (signing_in,) = re.findall(r"location ~ \^/\(login\|auth/token\) {([^}]*)}", NGINX)
    assert "client_max_body_size 16k;" in signing_in
    gate = (ROOT / "lib" / "segunlearn" / "app" / "security" / "gate.py").read_text(
        encoding="utf-8"
    )
    assert "_LARGEST_SIGN_IN: Final = 16 << 10\n" in gate
    others = NGINX.replace(signing_in, "")
    assert others.count("proxy_pass ") == others.count("proxy_request_buffering off;") == 1


def test_no_word_of_the_command_is_unknown() -> None:
    """The compose file's and the image's options are options of ``segunlearn serve``."""
    described = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    words = COMPOSE["services"]["segunlearn"]["command"] + instructions("CMD")[0]
    options = re.findall(r"--[a-z-]+", words)
    assert len(options) == 6
    assert all(f"`{option}" in described or option in described for option in options)


def test_the_tools_of_the_bill_are_pinned() -> None:
    """``make sbom`` and ``make audit`` install what is written down, apart from the environment."""
    lines = (ROOT / "container" / "sbom-tools.txt").read_text(encoding="utf-8").splitlines()
    tools = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in tools)
    assert {"cyclonedx-bom", "pip_audit"} <= {line.partition("==")[0] for line in tools}


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (None, 2, "no answer"),
        ("no JSON", 2, "no answer"),
        ({"dependencies": []}, 2, "nothing"),
        ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, "1 packages asked"),
        (
            {"dependencies": [
                {"name": "a", "version": "1", "vulns": []},
                {"name": "b", "skip_reason": "not found on PyPI"},
            ]},
            2, "1 of 2 packages could not be asked about (b): not found on PyPI.",
        ),
        (
            {"dependencies": [
                {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]},
                {"name": "b", "skip_reason": "not found on PyPI"},
            ]},
            1, "known hole: a 1: CVE-1, mended in 2",
        ),
    ],
)  # fmt: skip
def test_an_audit_that_could_not_ask_is_no_good_news(
    tmp_path: Path, answer: Any, status: int, said: str
) -> None:
    """``make audit``; pip-audit alone ends with 0 where it could ask about no package at all."""
    path = tmp_path / "audit.json"
    if answer is not None:
        path.write_text(json.dumps(answer), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "container" / "audit.py", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "container/audit.py build/audit.json" in makefile
