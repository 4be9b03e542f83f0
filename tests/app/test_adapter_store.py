"""Adapters on the disk: what is served, what is refused, and what a kill leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from app_sources import TINY, version_of
from segunlearn.adapters.site import SiteAdapter, Start
from segunlearn.app.adapter_store import AdapterInfo, SiteAdapters, site_digest
from segunlearn.errors import ConflictError, IntegrityError, NotFoundError
from segunlearn.networks import build_network
from segunlearn.records.durable import read_json, write_json_durably

BASE, OTHER, META = "a" * 64, "b" * 64, "c" * 64
SERVED = version_of(BASE)
SITE = "north||ct 64|1"
HEAD = "final_conv.weight"


def adapter(value: float, base: str = BASE, meta: str = "") -> SiteAdapter:
    shape = build_network(TINY, 1).get_parameter(HEAD).shape
    start = Start("initial", meta) if meta else None
    return SiteAdapter(base, {HEAD: torch.full(shape, value)}, {"k": 3}, start)


def put(
    store: SiteAdapters, value: float, base: str = BASE, *, meta: str = "", activate: bool = True
):
    made = adapter(value, base, meta)
    return store.put(SITE, made, run_id="r", note=lambda folder: None, activate=activate)


@pytest.fixture
def store(tmp_path: Path) -> SiteAdapters:
    return SiteAdapters(tmp_path / "sites" / "segmentation")


def served(store: SiteAdapters) -> str:
    info = store.current(SITE)
    return info.version if info else "base"


def test_the_pointer_goes_forward_and_back(store: SiteAdapters) -> None:
    assert (served(store), store.sites(), store.all()) == ("base", [], [])
    first, second = put(store, 1.0), put(store, 2.0)
    assert (first.version, second.version, served(store)) == ("v0001", "v0002", "v0002")
    assert float(second.load().tensors[HEAD].mean()) == 2.0
    assert store.roll_back(SITE, SERVED).version == "v0001"
    assert store.roll_back(SITE, SERVED) is None
    assert served(store) == "base"
    with pytest.raises(ConflictError, match="served by the base already"):
        store.roll_back(SITE, SERVED)
    assert store.activate(SITE, "v0002", SERVED).state == "current"
    assert [i.state for i in store.versions(SITE)] == ["available", "current"]
    assert store.sites() == [SITE]
    assert store.site_of(site_digest(SITE)) == SITE


def test_rolling_back_passes_over_retired_ones_and_other_bases(store: SiteAdapters) -> None:
    put(store, 1.0)
    put(store, 2.0, OTHER)
    third = put(store, 3.0)
    fourth = put(store, 4.0)
    store.retire([third], "marked")
    assert served(store) == fourth.version
    assert store.roll_back(SITE, SERVED).version == "v0001"


def test_a_retired_one_leaves_at_once_and_never_comes_back(store: SiteAdapters) -> None:
    put(store, 1.0)
    second = put(store, 2.0)
    store.retire([second], "a study was marked")
    assert served(store) == "v0001"
    with pytest.raises(ConflictError, match="a study was marked"):
        store.activate(SITE, "v0002", SERVED)
    third = put(store, 3.0)
    assert third.version == "v0003"  # a number is never used twice
    store.retire([store.get(SITE, "v0001"), third], "both")
    assert served(store) == "base"


def test_what_a_person_rolled_back_comes_back_by_nobody_else(store: SiteAdapters) -> None:
    first = put(store, 1.0)
    assert store.roll_back(SITE, SERVED) is None
    second = put(store, 2.0)
    store.retire([second], "marked")
    assert served(store) == "base"
    put(store, 3.0)
    assert store.roll_back(SITE, SERVED) is None
    assert store.activate(SITE, first.version, SERVED).why == ""
    fourth = put(store, 4.0)
    store.retire([fourth], "marked")
    assert served(store) == first.version  # it was chosen since


def test_what_was_taken_is_known_until_a_person_chooses(store: SiteAdapters) -> None:
    first, second = put(store, 1.0), put(store, 2.0)
    assert store.taken(SITE) is None
    store.roll_back(SITE, SERVED)
    store.retire([second], "marked")
    assert store.taken(SITE) is None  # it did not serve
    store.retire([first], "marked")
    assert store.taken(SITE).version == first.version
    third, fourth = put(store, 3.0), put(store, 4.0)
    assert store.taken(SITE) is None
    store.retire([fourth], "marked")
    store.retire([third], "marked")
    assert store.taken(SITE).version == fourth.version  # what served before it was taken, too
    pointer = third.path.parent / "current"
    pointer.write_text('{"version": "", "sha256": ""}')
    assert store.taken(SITE).version == fourth.version  # as older programs wrote it
    pointer.unlink()
    assert store.taken(SITE).version == fourth.version


def test_a_kill_between_record_and_pointer_serves_the_base(
    store: SiteAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = put(store, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_fall_back", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.retire([info], "marked")
    assert served(store) == "base"
    assert store.taken(SITE).version == info.version


def test_destroyed_tensors_are_gone_and_their_record_says_so(store: SiteAdapters) -> None:
    info = put(store, 1.0)
    for _ in range(2):
        store.destroy([store.get(SITE, "v0001")], "forgotten")
    after = store.get(SITE, "v0001")
    assert (after.state, after.here, after.why) == ("retired", False, "forgotten")
    assert not info.file.exists()
    assert list(store.root.rglob("*.safetensors")) == []


def test_another_base_is_refused(store: SiteAdapters) -> None:
    put(store, 1.0, OTHER, activate=False)
    with pytest.raises(ConflictError, match="was made for other weights"):
        store.activate(SITE, "v0001", SERVED)
    assert served(store) == "base"


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "older record"])
def test_another_meta_model_beside_the_same_weights_is_refused(
    store: SiteAdapters, recorded: bool
) -> None:
    """Training on a CPU repeats to the bit: other meta options give another meta model alone."""
    put(store, 1.0)
    second = put(store, 2.0, meta=META)
    if not recorded:
        about = read_json(second.path / "about.json")
        about.pop("meta")
        write_json_durably(second.path / "about.json", about)
    mine, other = version_of(BASE, META), version_of(BASE, "d" * 64)
    assert store.activate(SITE, "v0002", mine).fits(mine)
    for served_now in (other, SERVED):
        with pytest.raises(ConflictError, match="another meta model"):
            store.activate(SITE, "v0002", served_now)
    put(store, 3.0)
    assert store.roll_back(SITE, other).version == "v0001"


def test_what_serves_after_a_retired_one_could_serve_beside_it(store: SiteAdapters) -> None:
    put(store, 1.0, meta=META)
    put(store, 2.0, meta="d" * 64)
    third = put(store, 3.0, meta=META)
    store.retire([third], "marked")
    assert served(store) == "v0001"
    fourth = put(store, 4.0)
    store.retire([fourth], "marked")
    assert served(store) == "v0002"


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_changed_file_is_never_loaded(store: SiteAdapters, how: str) -> None:
    info = put(store, 1.0)
    if how == "missing":
        info.file.unlink()
    else:
        info.file.write_bytes(adapter(5.0).content)
    with pytest.raises(IntegrityError, match="changed"):
        info.load()
    with pytest.raises(IntegrityError):
        store.activate(SITE, "v0001", SERVED)


def test_a_folder_that_was_exchanged_serves_nobody(store: SiteAdapters) -> None:
    """Record and file fit each other, but are not what was chosen."""
    first, second = put(store, 1.0), put(store, 2.0)
    for name in ("about.json", "adapter.safetensors"):
        (second.path / name).write_bytes((first.path / name).read_bytes())
    with pytest.raises(IntegrityError, match="its record was changed"):
        store.current(SITE)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": "v0001"}', '{"version": "v7", "sha256": ""}']
)
def test_a_damaged_pointer_is_an_error_and_no_guess(store: SiteAdapters, text: str) -> None:
    info = put(store, 1.0)
    (info.path.parent / "current").write_text(text)
    with pytest.raises(IntegrityError):
        store.current(SITE)


def test_what_cannot_be_read_serves_nobody_and_hides_no_other(store: SiteAdapters) -> None:
    put(store, 1.0)
    damaged = [store.put(s, adapter(1.0), run_id="r", note=lambda _: None) for s in ("a", "b", "c")]
    (damaged[0].path / "about.json").write_text("{")
    (damaged[1].path.parent / "current").write_text("{")
    (damaged[2].path.parent / "site.json").write_text("{}")
    assert store.sites() == ["a", "b", SITE]
    assert store.in_service(SERVED) == [SITE]
    assert store.in_service(version_of(OTHER)) == store.in_service(None) == []
    assert [info.site for info in store.all()] == [SITE]
    assert [text.split(":")[0] for text in store.damaged()] == sorted(
        f"site {info.key}" for info in damaged
    )
    with pytest.raises(IntegrityError, match=damaged[0].name):
        store.current("a")


def test_a_kill_at_any_rename_leaves_the_old_adapter(
    store: SiteAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, 1.0)
    real, stops = os.replace, 0
    for stop in range(20):
        calls = 0

        def replace(source: object, target: object, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                put(store, 2.0)
            except KeyboardInterrupt:
                stops += 1
            else:
                break
        assert served(store) == "v0001"
        assert all(i.load() for i in store.versions(SITE))
    assert stops >= 3
    info: AdapterInfo | None = store.current(SITE)
    assert info is not None
    assert float(info.load().tensors[HEAD].mean()) == 2.0
    assert not list(store.root.rglob(".staging-*"))


def test_unknown_sites_and_versions(store: SiteAdapters) -> None:
    with pytest.raises(NotFoundError, match="no adapter"):
        store.get(SITE, "v0001")
    for key in ("0" * 16, "../../etc", ""):
        with pytest.raises(NotFoundError):
            store.site_of(key)
