"""Which adapter an image gets: header, wider keys, names, and headers that say nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from app_sources import version_of
from segunlearn.adapters.site import SiteAdapter, Start
from segunlearn.app.adapter_store import SiteAdapters, site_digest
from segunlearn.app.site_choice import Aliases, SiteChoice, choose_site, find_site
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.version_info import VersionInfo

BASE, META = "a" * 64, "c" * 64
SERVED = version_of(BASE)
HEADER = SiteKey("st. mary's", "siemens healthineers", "avanto", "42")
SCANNER, WIDER, KIND = "st. mary's||avanto|42", "st. mary's||avanto|", "|siemens|avanto|"


@pytest.fixture
def store(tmp_path: Path) -> SiteAdapters:
    return SiteAdapters(tmp_path / "segmentation")


def put(store: SiteAdapters, site: str, base: str = BASE, start: Start | None = None) -> str:
    adapter = SiteAdapter(base, {"x": torch.zeros(1)}, {}, start)
    return store.put(site, adapter, run_id="r", note=lambda _: None).name


def choose(
    store: SiteAdapters,
    header: SiteKey | None = HEADER,
    asked: str = "",
    served: VersionInfo = SERVED,
) -> SiteChoice:
    return choose_site(store, Aliases.read(store.root.parent), header, asked, served)


def test_the_narrowest_key_that_has_an_adapter_wins(store: SiteAdapters) -> None:
    assert choose(store).params()["adapter"] == "base"
    assert choose(store).rule == "none"
    for site, rule in ((KIND, "model"), (WIDER, "institution"), (SCANNER, "scanner")):
        name = put(store, site)
        found = choose(store)
        assert (found.params()["adapter"], found.site, found.rule) == (name, site, rule)
    store.roll_back(SCANNER, SERVED)
    assert choose(store).rule == "institution"


def test_another_scanner_or_institution_is_not_this_one(store: SiteAdapters) -> None:
    put(store, SCANNER)
    for header in (
        SiteKey("st. mary's", "siemens", "avanto", "43"),
        SiteKey("north", "siemens", "avanto", "42"),
        SiteKey("st. mary's", "siemens", "skyra", "42"),
    ):
        assert choose(store, header).adapter is None


def test_a_header_that_says_nothing_falls_back_and_says_so(store: SiteAdapters) -> None:
    put(store, SCANNER)
    removed = choose(store, SiteKey())
    assert (removed.adapter, removed.rule) == (None, "none")
    assert "de-identified" in removed.why
    # manufacturer and model stay in most de-identified headers
    kept = SiteKey(manufacturer="siemens", model="avanto")
    assert "de-identified" in choose(store, kept).why
    assert choose(store, kept).adapter is None
    put(store, KIND)
    assert choose(store, kept).rule == "model"
    assert "no DICOM header" in choose(store, None).why
    for header in (SiteKey(), None):
        assert "(--site, or site in a request)" in choose(store, header).why


def test_a_person_can_choose_a_site_or_the_base(store: SiteAdapters) -> None:
    name = put(store, SCANNER)
    assert choose(store, asked="base").params()["adapter"] == "base"
    for asked in (SCANNER, "St. Mary's|Siemens|Avanto|42", site_digest(SCANNER)):
        found = choose(store, None, asked)
        assert (found.params()["adapter"], found.rule) == (name, "override")
    with pytest.raises(NotFoundError, match=r"st\. mary's\|\|avanto\|42.*--site base"):
        choose(store, asked="nowhere")
    store.roll_back(SCANNER, SERVED)
    with pytest.raises(NotFoundError, match="with one: none"):
        choose(store, asked=SCANNER)


def test_an_adapter_of_other_weights_never_serves(store: SiteAdapters) -> None:
    put(store, SCANNER, "b" * 64)
    found = choose(store)
    assert found.adapter is None
    assert "made for other weights" in found.why
    with pytest.raises(ConflictError, match="made for other weights"):
        choose(store, asked=SCANNER)
    name = put(store, WIDER)
    assert choose(store).params()["adapter"] == name


def test_an_adapter_that_goes_on_from_another_meta_model_never_serves(
    store: SiteAdapters,
) -> None:
    name = put(store, SCANNER, start=Start("initial", META))
    assert choose(store, served=version_of(BASE, META)).params()["adapter"] == name
    for other in (version_of(BASE, "d" * 64), SERVED):
        found = choose(store, served=other)
        assert found.adapter is None
        assert "another meta model" in found.why
        with pytest.raises(ConflictError, match="another meta model"):
            choose(store, asked=SCANNER, served=other)


def test_aliases_join_spellings_and_name_sites(store: SiteAdapters) -> None:
    table = {
        "institution": {"Saint  Mary": "ST. MARY'S"},
        "station": {"CT1": "42"},
        "sites": {"Main building": SCANNER},
    }
    (store.root.parent / "aliases.json").write_text(json.dumps(table))
    name = put(store, SCANNER)
    other = SiteKey("saint mary", "siemens", "avanto", "ct1")
    assert choose(store, other).params()["adapter"] == name
    assert choose(store, None, "main  Building").params()["adapter"] == name


def test_the_name_of_a_hospital_is_its_only_adapter(store: SiteAdapters) -> None:
    """As ``adapt --site`` takes it, whose adapter is kept under the scanner's key."""
    name = put(store, SCANNER)
    put(store, "north||avanto|42")
    for asked in ("St.  Mary's", "st. mary's||avanto|"):
        assert choose(store, None, asked).params()["adapter"] == name
    put(store, "st. mary's||avanto|43")
    with pytest.raises(InvalidInputError, match=r"avanto\|42, st\. mary's\|\|avanto\|43"):
        choose(store, None, "St. Mary's")
    for asked in ("mary", "anonymized"):
        with pytest.raises(NotFoundError):
            choose(store, None, asked)


def test_who_serves_a_site_is_not_changed_by_naming_a_narrower_one(store: SiteAdapters) -> None:
    put(store, WIDER)
    known, aliases = store.sites(), Aliases.read(store.root.parent)
    assert find_site(known, aliases, "St. Mary's") == WIDER
    assert find_site(known, aliases, "St. Mary's|Siemens|Avanto|") == WIDER
    assert find_site(known, aliases, SCANNER) == ""
    assert find_site(known, aliases, SCANNER, wider=True) == WIDER


def test_spellings_that_are_joined_later_keep_their_adapter(store: SiteAdapters) -> None:
    old = "st. mary's hosp.||avanto|42"
    name = put(store, old)
    header = SiteKey("st. mary's hosp.", "siemens", "avanto", "42")
    (store.root.parent / "aliases.json").write_text(
        json.dumps({"institution": {"St. Mary's Hosp.": "st. mary's"}})
    )
    for other in (header, HEADER):
        found = choose(store, other)
        assert (found.params()["adapter"], found.site, found.rule) == (name, old, "scanner")
    for asked in (old, SCANNER):
        assert choose(store, None, asked).params()["adapter"] == name
    name = put(store, SCANNER)
    assert choose(store, header).params()["adapter"] == name


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"hospital": {}}',
        '{"sites": {"a": 1}}',
        '{"institution": {"ANONYMIZED": "north"}}',
    ],
)
def test_a_damaged_table_is_an_error_and_no_guess(store: SiteAdapters, text: str) -> None:
    (store.root.parent / "aliases.json").write_text(text)
    with pytest.raises(IntegrityError):
        choose(store)
