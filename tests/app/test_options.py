"""--conf, training options and the words of `segunlearn serve`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from segunlearn.app import train_options
from segunlearn.app.options import AppOptions
from segunlearn.app.serve_command import pairs
from segunlearn.app.server import prepare
from segunlearn.errors import InvalidInputError
from segunlearn.training.planning import RECIPES


def test_texts_become_values(tmp_path: Path) -> None:
    options = AppOptions.from_conf(
        {
            "home": str(tmp_path),
            "labels": "liver, spleen",
            "modalities": "MR",
            "filter": "BodyPartExamined=HEAD & StudyDate=2024*",
            "queue": "3",
            "server_mode": "true",
        }
    )
    assert options.home == tmp_path.resolve()
    assert options.labels == ("liver", "spleen")
    assert options.modalities == ("MR",)
    assert options.filter == (("BodyPartExamined", "HEAD"), ("StudyDate", "2024*"))
    assert options.queue == 3


def test_the_home_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGUNLEARN_HOME", str(tmp_path / "here"))
    assert AppOptions.from_conf({}).home == tmp_path / "here"
    assert AppOptions.from_conf({"home": str(tmp_path)}).home == tmp_path


@pytest.mark.parametrize(
    ("conf", "word"),
    [
        ({"hom": "x"}, "no such option"),
        ({"labels": "liver,liver"}, "differ"),
        ({"labels": "Liver,liver"}, "differ"),
        ({"model": "../x"}, "model"),
        ({"kind": "png"}, "dicom or files"),
        ({"modalities": "ct"}, "modalities"),
        ({"filter": "BodyPart"}, "Keyword=value"),
        ({"queue": "many"}, "number"),
        ({"refresh": "-1"}, "refresh"),
        ({"login": "yes"}, "off, tokens or oidc"),
        ({"login": "oidc"}, "belong together"),
        ({"login": "tokens", "issuer": "https://sso.example"}, "belong together"),
        ({"login": "oidc", "issuer": "http://sso.example"}, "https"),
        ({"login": "oidc", "issuer": "http://127.0.0.1.evil.example/"}, "https"),
        ({"login": "tokens", "let_everyone_in": "true"}, "no meaning"),
        ({"let_everyone_in": "perhaps"}, "let_everyone_in 'perhaps': must be true or false"),
        ({"automatic_labels": "yes"}, "automatic_labels 'yes': must be true or false"),
        ({"max_upload": "0"}, "max_upload"),
    ],
)
def test_wrong_options_are_named(conf: dict[str, str], word: str) -> None:
    with pytest.raises(InvalidInputError, match=word):
        AppOptions.from_conf(conf)


def test_strangers_are_served_only_when_it_is_said(tmp_path: Path) -> None:
    for conf, host in (({}, "0.0.0.0"), ({}, "::"), ({}, "pacs.example"), ({}, "")):
        with pytest.raises(InvalidInputError, match="--let-everyone-in"):
            prepare(str(tmp_path), {"home": str(tmp_path), **conf}, host=host, port=8000)
    for conf in ({"let_everyone_in": "true"}, {"login": "tokens"}):
        prepare(str(tmp_path), {"home": str(tmp_path), **conf}, host="0.0.0.0", port=8000)


def test_the_platforms_own_words_switch_login_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "true")
    monkeypatch.setenv("MONAI_LABEL_AUTH_REALM_URI", "https://sso.example/realms/x")
    options = AppOptions.from_conf({})
    assert (options.login, options.issuer) == ("oidc", "https://sso.example/realms/x")
    assert AppOptions.from_conf({"login": "tokens"}).issuer == ""
    monkeypatch.delenv("MONAI_LABEL_AUTH_REALM_URI")
    with pytest.raises(InvalidInputError, match="belong together"):
        AppOptions.from_conf({})


def test_words_of_the_command_line() -> None:
    assert pairs(["store", "k=v=w"], ["url"]) == {"store": "url", "k": "v=w"}
    with pytest.raises(InvalidInputError, match="value is missing"):
        pairs(["labels"], [])
    with pytest.raises(InvalidInputError, match="unexpected words"):
        pairs([], ["stray"])


def test_stock_clients_send_numbers_as_texts() -> None:
    read = train_options.check(
        {"max_epochs": "3", "learning_rate": "0.01", "pretrained": "false", "amp": ["off", "auto"]}
    )
    assert (read["max_epochs"], read["learning_rate"], read["pretrained"]) == (3, 0.01, False)
    assert read["amp"] == "off"
    assert train_options.settings_of(read, "cpu").epochs == 3


def test_options_of_other_trainers_are_dropped() -> None:
    leaked = {"name": "train_01", "dataset_cache": True, "gpus": "all", "client_id": "me"}
    assert set(train_options.check(leaked)) == set(train_options.OPTIONS)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("default", {"val_fraction": 0.2}), ("sample", {"val_fraction": 0.2}), ("long", {})],
)
def test_a_recipe_says_how_to_train_where_a_client_sends_the_defaults(
    name: str, changes: dict[str, float]
) -> None:
    """Stock Slicer sends every default that ``/info`` told; a short request sends none."""
    sent = {k: v[0] if isinstance(v, list) else v for k, v in train_options.config().items()}
    told = replace(RECIPES[name].settings, **changes, device="cpu")  # type: ignore[arg-type]
    for request in ({"recipe": name}, {**sent, "recipe": name}):
        assert train_options.settings_of(train_options.check(request), "cpu") == told
        chosen = train_options.check({**request, "max_epochs": 3, "val_split": 0.5})
        wanted = replace(told, epochs=3, val_fraction=0.5)
        assert train_options.settings_of(chosen, "cpu") == wanted


def test_what_the_platform_adds_is_no_option_of_another_trainer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        train_options.check({"model": "segmentation", "client_id": "me", "local_rank": 0})
        assert not caplog.records
        train_options.check({"gpus": "all", "local_rank": 0})
    assert caplog.messages == ["options that this trainer does not have are ignored: gpus"]


@pytest.mark.parametrize("key", train_options.REFUSED)
def test_a_request_never_chooses_its_cases(key: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot choose"):
        train_options.check({key: "/etc"})
    train_options.check({key: ""})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_epochs", "many"),
        ("max_epochs", 0),
        ("max_epochs", 1.5),
        ("max_epochs", True),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("max_epochs", float("inf")),
        ("val_split", 0.95),
        ("amp", "maybe"),
        ("pretrained", "perhaps"),
        ("seed", [1]),
    ],
)
def test_wrong_values_are_named(key: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=key):
        train_options.check({key: value})


def test_the_server_and_its_children_get_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "people.csv").write_text("file,person\n")
    conf = {"home": "home", "people": "people.csv", "labels": "a,b"}
    environment, home = prepare("studies", conf, host="127.0.0.1", port=8000)
    assert home.root == tmp_path / "home"
    assert environment["MONAI_LABEL_STUDIES"] == str(tmp_path / "studies")
    assert json.loads(environment["MONAI_LABEL_APP_CONF"]) == {
        "home": str(tmp_path / "home"),
        "people": str(tmp_path / "people.csv"),
        "labels": "a,b",
    }
    assert "SegUnlearnApp" in (tmp_path / "home" / "app" / "main.py").read_text()
    assert environment["MONAI_LABEL_TRACKING_ENABLED"] == "false"
    with pytest.raises(InvalidInputError, match="no such folder"):
        prepare("nowhere", conf, host="127.0.0.1", port=8000)
