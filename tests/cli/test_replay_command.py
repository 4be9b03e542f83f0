"""``segunlearn replay forget-feature --attribute`` on DICOM images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app_sources import TINY, make_study, publish_tiny, write_dicom, write_segmentations
from command_line import segunlearn


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A home with a generator of five people, two of whom have text burned in."""
    folder = tmp_path_factory.mktemp("site")
    studies = [make_study(n) for n in range(5)]
    for number, study in enumerate(studies):
        for header in study.datasets:
            header.BurnedInAnnotation = "YES" if number < 2 else "NO"
            header.ImageType = ["DERIVED" if number == 4 else "ORIGINAL", "PRIMARY"]
    write_dicom(folder / "studies", studies)
    write_segmentations(folder / "studies", studies)
    publish_tiny(folder / "home")
    words = (
        "--studies", folder / "studies", "--home", folder / "home", "--model", TINY.name,
        "--device", "cpu", "--json",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        assert segunlearn(patch, "replay", "train", *words, "--steps", 4, "--latent", 8) == 0
    return words


@pytest.mark.parametrize(
    ("attribute", "with_feature"), [("BurnedInAnnotation=yes", 2), ("ImageType=DERIVED", 1)]
)
def test_headers_say_which_images_have_the_feature(
    site: tuple[object, ...], attribute: str, with_feature: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    more = ("--attribute", attribute, "--steps", 2)
    assert segunlearn(monkeypatch, "replay", "forget-feature", *site, *more) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["with"], told["without"]) == (with_feature, 5 - with_feature)


def test_tags_in_another_encoding_and_latents_beyond_memory_are_refused(
    site: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tags = tmp_path / "tags.csv"
    tags.write_bytes("image,feature\nMüller,yes\n".encode("latin-1"))
    assert segunlearn(monkeypatch, "replay", "forget-feature", *site, "--tags", tags) == 2
    assert "tags.csv: is not UTF-8" in capsys.readouterr().err.replace("\n", "")
    assert segunlearn(monkeypatch, "replay", "train", *site, "--latent", 999999999) == 2
    assert "or equal to 4096" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("BurnedInAnotation=YES", "no keyword"),
        ("BurnedInAnnotation=PERHAPS", "tag some of both"),
        ("BurnedInAnnotation", "needs --studies"),
    ],
)
def test_attributes_that_tell_nothing_are_refused(
    site: tuple[object, ...], attribute: str, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    more = ("--attribute", attribute, "--steps", 2)
    assert segunlearn(monkeypatch, "replay", "forget-feature", *site, *more) != 0
    assert said in capsys.readouterr().err.replace("\n", " ")
