"""The registry of versions: stopped at any line, it serves the old version or the new one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.versions import VersionInfo, VersionRegistry, file_sha256

CONFIG = {"name": "segmentation", "labels": ["liver"]}


def publish(
    registry: VersionRegistry, content: bytes, run_id: str = "run", **options: Any
) -> VersionInfo:
    """Publish a file of this content; the registry never looks into the weights."""
    registry.root.parent.mkdir(parents=True, exist_ok=True)
    source = registry.root.parent / "trained.safetensors"
    source.write_bytes(content)
    options = {"parent_sha256": None, **options}
    return registry.publish(source, CONFIG, run_id=run_id, **options)


@pytest.fixture
def registry(tmp_path: Path) -> VersionRegistry:
    return VersionRegistry(tmp_path / "models" / "segmentation")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def states(registry: VersionRegistry) -> dict[str, str]:
    return {v.version: v.state for v in registry.versions()}


# publish, activate, retire


def test_an_empty_registry(registry: VersionRegistry) -> None:
    assert registry.versions() == []
    assert registry.active() is None
    with pytest.raises(NotFoundError, match="there are none"):
        registry.get("v0001")
    assert not registry.root.exists(), "reading makes nothing"


def test_a_published_version_holds_what_was_given(registry: VersionRegistry) -> None:
    first = publish(registry, b"one", "run-1", details={"dice": 0.9})
    second = publish(registry, b"two", "run-2", parent_sha256=first.sha256)

    assert (first.version, first.sha256, first.run_id) == ("v0001", sha(b"one"), "run-1")
    assert first.parent_sha256 is None
    assert first.details == {"dice": 0.9}
    assert second.parent_sha256 == first.sha256
    assert second.config == CONFIG
    assert second.weights.read_bytes() == b"two"
    assert second.path == registry.root / "versions" / "v0002"
    assert datetime.fromisoformat(second.created).utcoffset() == timedelta(0)
    assert states(registry) == {"v0001": "available", "v0002": "active"}
    assert registry.active() == second == registry.get("v0002") == registry.get(sha(b"two"))
    pointer = json.loads((registry.root / "active").read_text())
    assert pointer == {"version": "v0002", "sha256": sha(b"two")}


def test_a_version_can_be_published_without_serving_it(registry: VersionRegistry) -> None:
    assert publish(registry, b"one", activate=False).state == "available"
    assert registry.active() is None
    publish(registry, b"two")
    assert publish(registry, b"three", activate=False).state == "available"
    assert states(registry) == {"v0001": "available", "v0002": "active", "v0003": "available"}


def test_a_folder_with_weights_is_published(registry: VersionRegistry, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"one")

    info = registry.publish(tmp_path, CONFIG, parent_sha256=None, run_id="run")

    assert info.sha256 == sha(b"one")
    assert (tmp_path / "weights.safetensors").exists(), "copied, not moved"


def test_no_weights_no_version(registry: VersionRegistry, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone.safetensors"):
        with pytest.raises(NotFoundError, match="did not finish"):
            registry.publish(place, CONFIG, parent_sha256=None, run_id="run")
    assert registry.versions() == []


def test_activating_an_older_version(registry: VersionRegistry) -> None:
    publish(registry, b"one")
    publish(registry, b"two")

    assert registry.activate("v0001").state == "active"
    assert states(registry) == {"v0001": "active", "v0002": "available"}
    assert registry.activate(sha(b"two")).version == "v0002"
    with pytest.raises(NotFoundError, match="v0001, v0002"):
        registry.activate("v0003")


def test_a_retired_version_is_kept_and_never_served_again(registry: VersionRegistry) -> None:
    publish(registry, b"one", details={"dice": 0.9})
    with pytest.raises(ConflictError, match="active"):
        registry.retire("v0001")
    publish(registry, b"two")

    retired = registry.retire("v0001")

    assert retired.state == "retired"
    assert retired.details == {"dice": 0.9}
    assert retired.weights.read_bytes() == b"one"
    with pytest.raises(ConflictError, match="retired"):
        registry.activate("v0001")
    assert states(registry) == {"v0001": "retired", "v0002": "active"}
    assert registry.retire("v0001") == retired, "a second time changes nothing"


def test_names_go_on_beyond_four_digits_and_in_order(registry: VersionRegistry) -> None:
    info = publish(registry, b"one")
    info.path.rename(info.path.with_name("v9999"))

    assert publish(registry, b"two").version == "v10000"
    assert publish(registry, b"three").version == "v10001"
    assert [v.version for v in registry.versions()] == ["v9999", "v10000", "v10001"]


def test_the_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="no folder"):
        VersionRegistry(tmp_path / "file").activate("v0001")


# publishing again


def test_publishing_the_same_run_again_gives_the_same_version(registry: VersionRegistry) -> None:
    first = publish(registry, b"one", "run-1")

    assert publish(registry, b"one", "run-1") == first
    assert publish(registry, b"one", "run-2").version == "v0002", "another run with equal weights"
    assert publish(registry, b"two", "run-1").version == "v0003", "other weights of that run"


def test_publishing_again_finishes_a_publish_that_was_stopped(registry: VersionRegistry) -> None:
    publish(registry, b"one", "run-1")
    stopped = publish(registry, b"two", "run-2", activate=False)

    again = publish(registry, b"two", "run-2")

    assert again.version == stopped.version
    assert registry.active() == again


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("run_id", ["run-1", "run-9"])
def test_retired_weights_are_not_published_again(
    registry: VersionRegistry, run_id: str, activate: bool
) -> None:
    publish(registry, b"one", "run-1")
    publish(registry, b"two", "run-2")
    registry.retire("v0001").weights.unlink()  # destroyed, and still known by their digest

    with pytest.raises(ConflictError, match=f"v0001.*{sha(b'one')[:12]}.*retired"):
        publish(registry, b"one", run_id, activate=activate)

    assert states(registry) == {"v0001": "retired", "v0002": "active"}
    with pytest.raises(ConflictError, match="retired"):
        registry.refuse_retired(sha(b"one"))
    registry.refuse_retired(sha(b"two"))
    registry.refuse_retired(sha(b"three"))


def test_a_restore_publishes_retired_weights_once(registry: VersionRegistry) -> None:
    publish(registry, b"one", "run-1")
    publish(registry, b"two", "run-2")
    registry.retire("v0001")

    again = publish(registry, b"one", "run-1", allow_retired=True)

    assert again.version == "v0003"
    assert publish(registry, b"one", "run-1", allow_retired=True).version == "v0003"
    assert states(registry) == {"v0001": "retired", "v0002": "available", "v0003": "active"}
    # from now on the digest means the restored version
    registry.activate("v0002")
    assert registry.activate(sha(b"one")).version == "v0003"
    assert publish(registry, b"one", "run-1").version == "v0003"
    registry.refuse_retired(sha(b"one"))


# candidates


def candidate(registry: VersionRegistry, content: bytes = b"new", **options: Any) -> VersionInfo:
    return publish(registry, content, "unlearning", candidate=True, **options)


def test_a_candidate_is_there_and_not_served(registry: VersionRegistry) -> None:
    old = publish(registry, b"old")

    info = candidate(registry, parent_sha256=old.sha256)

    assert (info.version, info.state, info.unpromoted) == ("v0002", "candidate", True)
    assert info.weights.read_bytes() == b"new"
    assert registry.active() == old
    assert not old.unpromoted
    for name in ("v0002", info.sha256):
        with pytest.raises(ConflictError, match=r"v0002 is a candidate that no audit.*Audit it"):
            registry.activate(name)
    assert states(registry) == {"v0001": "active", "v0002": "candidate"}


def test_a_candidate_is_published_once(registry: VersionRegistry) -> None:
    publish(registry, b"old")
    first = candidate(registry)

    assert candidate(registry) == first
    with pytest.raises(ConflictError, match=r"v0002.*candidate"):
        publish(registry, b"new", "unlearning")  # no way around the audit
    assert publish(registry, b"newer", "unlearning", candidate=True).version == "v0003"
    promoted = registry.promote("v0002")
    assert candidate(registry) == promoted, "a killed run that is repeated after all"


def test_a_first_version_can_be_a_candidate(registry: VersionRegistry) -> None:
    candidate(registry)
    assert registry.active() is None
    assert registry.promote("v0001").state == "active"


def test_a_digest_means_a_candidate_last(registry: VersionRegistry) -> None:
    candidate(registry, b"same")
    assert registry.get(sha(b"same")).version == "v0001"
    publish(registry, b"same", "training")
    assert registry.get(sha(b"same")).version == "v0002"
    publish(registry, b"other")
    registry.retire("v0002")
    assert registry.get(sha(b"same")).version == "v0001", "and before a retired one"


def test_a_promoted_candidate_is_served(registry: VersionRegistry) -> None:
    publish(registry, b"old")
    candidate(registry, details={"method": "erode_and_repair"})

    info = registry.promote("v0002")

    assert registry.active() == info
    assert (info.state, info.unpromoted) == ("active", False)
    assert info.details == {"method": "erode_and_repair"}
    assert states(registry) == {"v0001": "available", "v0002": "active"}
    assert registry.promote("v0002") == info, "a second time changes nothing"
    registry.activate("v0001")
    assert registry.promote("v0002") == info, "or points to it again"
    registry.activate("v0001")
    assert registry.activate("v0002") == info, "now a version like any other"


def test_what_is_not_promoted(registry: VersionRegistry) -> None:
    publish(registry, b"old")
    publish(registry, b"other", "run-2", activate=False)
    with pytest.raises(ConflictError, match=r"v0002 is no candidate.*activate"):
        registry.promote("v0002")
    candidate(registry)
    registry.retire("v0003")
    with pytest.raises(ConflictError, match=r"v0003.*retired"):
        registry.promote("v0003")
    changed = candidate(registry, b"newer")
    changed.weights.write_bytes(b"never")
    with pytest.raises(IntegrityError, match="v0004"):
        registry.promote("v0004")
    with pytest.raises(NotFoundError):
        registry.promote("v0009")
    assert states(registry) == {
        "v0001": "active", "v0002": "available", "v0003": "retired", "v0004": "candidate",
    }  # fmt: skip


def test_a_discarded_candidate_loses_its_weights(registry: VersionRegistry) -> None:
    publish(registry, b"old")
    info = candidate(registry)

    gone = registry.discard("v0002")

    assert (gone.state, gone.weights_state, gone.unpromoted) == ("retired", "destroyed", True)
    assert not info.weights.exists()
    assert registry.discard("v0002") == gone, "a second time changes nothing"
    with pytest.raises(ConflictError, match="discarded"):
        registry.promote("v0002")
    with pytest.raises(ConflictError, match="never served"):
        registry.put_back("v0002", b"new")
    with pytest.raises(ConflictError, match="retired"):
        publish(registry, b"new", "training")
    assert states(registry) == {"v0001": "active", "v0002": "retired"}


def test_the_weights_of_a_discarded_candidate_may_be_audited_again(
    registry: VersionRegistry,
) -> None:
    publish(registry, b"old")
    candidate(registry)
    registry.discard("v0002")

    assert candidate(registry).version == "v0003"

    publish(registry, b"training")
    registry.retire("v0001")
    with pytest.raises(ConflictError, match=r"v0001.*retired"):
        candidate(registry, b"old")  # unlearning that changed nothing: what was retired is not new


def test_only_candidates_are_discarded(registry: VersionRegistry) -> None:
    publish(registry, b"old")
    publish(registry, b"other", "run-2", activate=False)
    candidate(registry)
    registry.promote("v0003")
    registry.activate("v0001")
    for name in ("v0001", "v0002", "v0003"):
        with pytest.raises(ConflictError, match=f"{name}.*no candidate"):
            registry.discard(name)
    registry.retire("v0003")
    with pytest.raises(ConflictError, match="v0003"):
        registry.discard("v0003")
    assert all(v.weights.exists() for v in registry.versions())
    candidate(registry, b"newer")
    registry.retire("v0004")
    assert registry.discard("v0004").weights_state == "destroyed", "retired first, never promoted"


# weights that go, and come back


def with_retired(registry: VersionRegistry) -> VersionInfo:
    """Publish v0001, now retired, and v0002, now active."""
    publish(registry, b"old", "run-1", details={"dice": 0.9})
    publish(registry, b"new", "run-2")
    return registry.retire("v0001")


def test_only_the_weights_of_a_retired_version_are_destroyed(registry: VersionRegistry) -> None:
    publish(registry, b"old")
    publish(registry, b"other", activate=False)
    candidate(registry)
    for name, state in (("v0001", "active"), ("v0002", "available"), ("v0003", "candidate")):
        with pytest.raises(ConflictError, match=f"{name} is {state}.*Retire it"):
            registry.destroy_weights(name)
        assert registry.get(name).weights.exists()


@pytest.mark.parametrize(("sealed", "word"), [(True, "sealed"), (False, "destroyed")])
def test_destroyed_weights_are_gone_and_the_manifest_stays(
    registry: VersionRegistry, sealed: bool, word: str
) -> None:
    info = with_retired(registry)
    assert info.weights_state == "here"

    gone = registry.destroy_weights("v0001", sealed=sealed)

    assert [p.name for p in sorted(info.path.iterdir())] == ["config.json", "manifest.json"]
    assert (gone.state, gone.weights_state, gone.sha256) == ("retired", word, sha(b"old"))
    assert gone.details == {"dice": 0.9}
    assert registry.destroy_weights("v0001", sealed=sealed) == gone
    with pytest.raises(ConflictError, match="retired"):
        registry.activate("v0001")
    with pytest.raises(ConflictError, match="retired"):
        publish(registry, b"old", "run-1")


def test_a_meta_model_comes_and_goes_with_its_weights(
    registry: VersionRegistry, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"joint")
    (tmp_path / "run" / "meta.safetensors").write_bytes(b"meta")
    made = registry.publish(tmp_path / "run", CONFIG, parent_sha256=None, run_id="run")
    assert (made.path / "meta.safetensors").read_bytes() == b"meta"
    other = publish(registry, b"new")
    assert not (other.path / "meta.safetensors").exists()
    registry.retire(made.version)

    registry.destroy_weights(made.version, sealed=True)

    assert not (made.path / "meta.safetensors").exists(), "it knows the studies, too"


def test_sealed_may_become_destroyed_and_never_the_other_way(registry: VersionRegistry) -> None:
    with_retired(registry)
    registry.destroy_weights("v0001", sealed=True)

    assert registry.destroy_weights("v0001").weights_state == "destroyed"

    with pytest.raises(ConflictError, match="no deposit"):
        registry.destroy_weights("v0001", sealed=True)
    with pytest.raises(ConflictError, match="for good"):
        registry.put_back("v0001", b"old")


def test_copies_that_a_kill_left_go_too(registry: VersionRegistry) -> None:
    info = with_retired(registry)
    (info.path / f".weights.safetensors.{'0' * 32}.part").write_bytes(b"old")
    staging = registry.root / "versions" / ".staging-1"
    staging.mkdir()
    (staging / "weights.safetensors").write_bytes(b"old")

    registry.destroy_weights("v0001")

    assert [p for p in registry.root.rglob("*") if p.is_file() and p.read_bytes() == b"old"] == []


@pytest.mark.parametrize("state", ["available", "retired"])
def test_sealed_weights_come_back(registry: VersionRegistry, state: Any) -> None:
    before = with_retired(registry)
    registry.destroy_weights("v0001", sealed=True)

    info = registry.put_back("v0001", b"old", state)

    assert (info.state, info.weights_state) == (state, "here")
    assert info.weights.read_bytes() == b"old"
    assert registry.put_back("v0001", b"old", state) == info
    assert states(registry)["v0002"] == "active", "served is what was served"
    if state == "available":
        assert registry.activate(before.sha256).version == "v0001"
        assert registry.put_back("v0001", b"old").state == "active"
        with pytest.raises(ConflictError, match="active"):
            registry.put_back("v0001", b"old", "retired")
        registry.refuse_retired(before.sha256)
    else:
        assert info == before


def test_weights_that_were_kept_come_back_too(registry: VersionRegistry) -> None:
    with_retired(registry).weights.write_bytes(b"damaged")
    assert registry.put_back("v0001", b"old").weights.read_bytes() == b"old"


@pytest.mark.parametrize("payload", [b"", b"new", b"old "])
def test_other_bytes_do_not_come_back(registry: VersionRegistry, payload: bytes) -> None:
    with_retired(registry)
    gone = registry.destroy_weights("v0001", sealed=True)

    with pytest.raises(IntegrityError, match="v0001"):
        registry.put_back("v0001", payload)

    assert registry.get("v0001") == gone
    assert not gone.weights.exists()
    with pytest.raises(InvalidInputError, match="candidate"):
        registry.put_back("v0001", b"old", "candidate")  # type: ignore[arg-type]


def test_manifests_from_before_say_nothing_of_weights(registry: VersionRegistry) -> None:
    for content in (b"one", b"two"):
        path = publish(registry, content, content.decode()).path / "manifest.json"
        manifest = json.loads(path.read_text())
        assert manifest.pop("weights") == "here"
        path.write_text(json.dumps(manifest))

    assert [(v.weights_state, v.unpromoted) for v in registry.versions()] == [("here", False)] * 2
    registry.activate("v0001")
    registry.retire("v0002")
    assert registry.destroy_weights("v0002", sealed=True).weights_state == "sealed"
    assert registry.put_back("v0002", b"two").state == "available"


@pytest.mark.parametrize("change", [{"state": "served"}, {"weights": "lost"}, {"state": []}])
def test_a_manifest_with_unknown_words_is_named(
    registry: VersionRegistry, change: dict[str, Any]
) -> None:
    path = publish(registry, b"one").path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(IntegrityError, match="v0001"):
        registry.versions()


# damage


def break_digest(registry: VersionRegistry) -> None:
    path = registry.root / "versions" / "v0002" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "0" * 64}))


def break_pointer(registry: VersionRegistry) -> None:
    (registry.root / "active").write_text('{"version": "v0002"')


def point_outside(registry: VersionRegistry) -> None:
    (registry.root / "active").write_text(json.dumps({"version": "../v0002", "sha256": "0"}))


def point_to_nothing(registry: VersionRegistry) -> None:
    (registry.root / "active").write_text(json.dumps({"version": "v0009", "sha256": "0"}))


@pytest.mark.parametrize("damage", [break_digest, break_pointer, point_outside, point_to_nothing])
def test_a_wrong_pointer_serves_nothing_until_a_version_is_activated(
    registry: VersionRegistry, damage: Any
) -> None:
    publish(registry, b"one")
    publish(registry, b"two")
    damage(registry)

    with pytest.raises(IntegrityError, match=r"[Aa]ctivate"):
        registry.active()

    assert registry.activate("v0001").state == "active", "the remedy that the message names"
    info = registry.active()
    assert info is not None
    assert info.sha256 == sha(b"one")


def test_a_damaged_pointer_does_not_lose_a_finished_training(registry: VersionRegistry) -> None:
    publish(registry, b"one")
    publish(registry, b"two")
    break_pointer(registry)

    assert publish(registry, b"three").version == "v0003"
    assert states(registry) == {"v0001": "available", "v0002": "available", "v0003": "active"}


def test_with_a_damaged_pointer_nothing_is_retired(registry: VersionRegistry) -> None:
    publish(registry, b"one")
    break_pointer(registry)

    with pytest.raises(IntegrityError, match="Activate"):
        registry.retire("v0001")  # it may be the one that is served


def test_changed_or_missing_weights_are_not_activated(registry: VersionRegistry) -> None:
    first = publish(registry, b"one")
    publish(registry, b"two")

    first.weights.write_bytes(b"0ne")
    with pytest.raises(IntegrityError, match="v0001"):
        registry.activate("v0001")
    first.weights.unlink()
    with pytest.raises(IntegrityError, match="v0001"):
        registry.activate("v0001")

    assert states(registry) == {"v0001": "available", "v0002": "active"}


@pytest.mark.parametrize("key", ["sha256", "created", "parent_sha256", "run_id", "state"])
def test_a_manifest_without_a_key_is_named(registry: VersionRegistry, key: str) -> None:
    path = publish(registry, b"one").path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))

    with pytest.raises(IntegrityError, match=f"v0001.*{key}"):
        registry.versions()


@pytest.mark.parametrize("manifest", ["[]", "null", '"v0001"'])
def test_a_manifest_of_another_kind_is_named(registry: VersionRegistry, manifest: str) -> None:
    (publish(registry, b"one").path / "manifest.json").write_text(manifest)

    with pytest.raises(IntegrityError, match="v0001"):
        registry.versions()


def test_other_things_in_the_folder_are_left_alone(registry: VersionRegistry) -> None:
    publish(registry, b"one")
    versions = registry.root / "versions"
    (versions / "notes").mkdir()
    (versions / "v0007").write_text("a file")

    assert [v.version for v in registry.versions()] == ["v0001"]


# stopped at any moment


class Failure(BaseException):
    """Neither an error that code handles, nor one that pytest knows."""


ORDER = ("replace", "rename", "fsync")


def fail_at(
    monkeypatch: pytest.MonkeyPatch, index: int, *, after: bool, names: tuple[str, ...] = ORDER
) -> list[str]:
    """Make the call number ``index`` of those that touch the disk's order fail."""
    calls: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            stop = len(calls) - 1 == index
            if stop and not after:
                raise Failure(name)
            result = real(*arguments, **options)
            if stop:
                raise Failure(name)
            return result

        monkeypatch.setattr(os, name, call)

    for name in names:
        wrap(name)
    return calls


def check_old_or_new(registry: VersionRegistry, old: bytes, new: bytes) -> bool:
    """Whether the new one is active; anything but old or new, whole, fails."""
    active = registry.active()
    assert active is not None
    for info in registry.versions():
        assert file_sha256(info.weights) == info.sha256, "nothing half-written is listed"
        assert info.config == CONFIG
    assert active.weights.read_bytes() in (old, new)
    assert active.state == "active"
    return active.weights.read_bytes() == new


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_failing_at_any_call_leaves_a_whole_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    outcomes, names = [], []
    for index in range(100):
        registry = VersionRegistry(tmp_path / f"{index}" / "model")
        publish(registry, b"old", "run-1")
        with monkeypatch.context() as patch:
            calls = fail_at(patch, index, after=after)
            try:
                publish(registry, b"new", "run-2")
                break
            except Failure:
                names.append(calls[-1])
        outcomes.append(check_old_or_new(registry, b"old", b"new"))
        assert publish(registry, b"new", "run-2").version == "v0002", "the repeat completes it"
        assert states(registry) == {"v0001": "available", "v0002": "active"}
        leftovers = [p.name for p in registry.root.rglob("*") if "staging" in p.name]
        assert leftovers == []

    # weights, config, manifest and pointer, each flushed; three of them and the folder renamed
    assert names.count("replace") == 4
    assert names.count("fsync") >= 8
    assert outcomes == sorted(outcomes), "once new, it stays new"
    pointer_renamed = max(i for i, name in enumerate(names) if name == "replace")
    assert outcomes.index(True) == (pointer_renamed if after else pointer_renamed + 1)


@pytest.mark.parametrize("action", ["activate", "retire"])
def test_activating_and_retiring_fail_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    for index in range(20):
        registry = VersionRegistry(tmp_path / f"{index}" / "model")
        publish(registry, b"one")
        publish(registry, b"two")
        before = states(registry)
        with monkeypatch.context() as patch:
            fail_at(patch, index, after=False)
            try:
                getattr(registry, action)("v0001")
                break
            except Failure:
                pass
        wanted = {
            "activate": {"v0001": "active", "v0002": "available"},
            "retire": {"v0001": "retired", "v0002": "active"},
        }[action]
        assert states(registry) in (before, wanted)
        check_old_or_new(registry, b"one", b"two")
    assert index == 3, "flush, rename, flush of the folder"


KILLED_AT_EVERY_LINE = """
import os, shutil, sys
from pathlib import Path
from segunlearn.records.versions import VersionRegistry

folder, every = Path(sys.argv[1]), int(sys.argv[3])
for number in range(0, 10_000, every):
    root = folder / f"{number:05d}"
    shutil.copytree(folder / "before", root)
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: None  # a killed process loses nothing it has written
        lines = 0
        def trace(frame, event, argument):
            global lines
            if not frame.f_globals.get("__name__", "").startswith("segunlearn.records"):
                return None
            if event == "line":
                if lines == number:
                    os._exit(9)  # no handler, no finally, no flush: as kill -9
                lines += 1
            return trace
        sys.settrace(trace)
        registry = VersionRegistry(root / "model")
        if sys.argv[2] == "publish":
            registry.publish(
                root / "new.safetensors", {"name": "segmentation", "labels": ["liver"]},
                parent_sha256=None, run_id="run-2",
            )
        else:
            registry.promote("v0002")
            registry.retire("v0001")
            registry.destroy_weights("v0001", sealed=True)
        sys.settrace(None)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        sys.exit()
"""


def test_killed_at_any_line_it_serves_the_old_or_the_new_version(tmp_path: Path) -> None:
    registry = VersionRegistry(tmp_path / "before" / "model")
    publish(registry, b"old", "run-1")
    (tmp_path / "before" / "new.safetensors").write_bytes(b"new")

    subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, str(tmp_path), "publish", "1"],
        check=True,
        timeout=120,
    )

    roots = sorted(p for p in tmp_path.iterdir() if p.name != "before")
    assert len(roots) > 100, "the trace saw the lines"
    outcomes = []
    for root in roots:
        killed = VersionRegistry(root / "model")
        outcomes.append(check_old_or_new(killed, b"old", b"new"))
    assert not outcomes[0]
    assert outcomes[-1]
    assert outcomes == sorted(outcomes)
    for root in roots[::25]:
        killed = VersionRegistry(root / "model")
        assert publish(killed, b"new", "run-2").version == "v0002", "no lock is left held"
        assert not list(killed.root.rglob(".staging-*"))


#: What a run does with versions after its audit, or a restore: (prepare, do, the result's states)
STEPS: dict[str, tuple[Any, Any, tuple[str, str, str, str]]] = {
    "promote": (
        lambda r: (publish(r, b"old", "run-1"), candidate(r)),
        lambda r: r.promote("v0002"),
        ("available", "here", "active", "here"),
    ),
    "discard": (
        lambda r: (publish(r, b"old", "run-1"), candidate(r)),
        lambda r: r.discard("v0002"),
        ("active", "here", "retired", "destroyed"),
    ),
    "seal": (
        with_retired,
        lambda r: r.destroy_weights("v0001", sealed=True),
        ("retired", "sealed", "active", "here"),
    ),
    "put_back": (
        lambda r: (with_retired(r), r.destroy_weights("v0001", sealed=True)),
        lambda r: r.put_back("v0001", b"old"),
        ("available", "here", "active", "here"),
    ),
}


def check_consistent(registry: VersionRegistry) -> None:
    """Exactly one whole version is served, and no manifest says too little of its weights."""
    active = registry.active()
    assert active is not None
    assert file_sha256(active.weights) == active.sha256
    stored = json.loads((active.path / "manifest.json").read_text())
    assert stored["state"] == "available", "never a candidate or a retired one"
    for info in registry.versions():
        if info.weights.exists():
            assert file_sha256(info.weights) == info.sha256, "never half-written"
        if info.state in ("active", "available", "candidate"):
            assert info.weights_state == "here"
            assert info.weights.exists()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_each_step_that_is_stopped_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    prepare, do, wanted = STEPS[step]
    for index in range(30):
        registry = VersionRegistry(tmp_path / f"{index}" / "model")
        prepare(registry)
        with monkeypatch.context() as patch:
            fail_at(patch, index, after=after, names=(*ORDER, "unlink"))
            try:
                do(registry)
                break
            except Failure:
                pass
        check_consistent(registry)
        if step in ("discard", "seal"):
            for info in registry.versions():
                assert info.weights_state == "here" or not info.weights.exists()
        do(registry)
        found = [(v.state, v.weights_state) for v in registry.versions()]
        assert tuple(word for pair in found for word in pair) == wanted
        check_consistent(registry)
    assert index >= 5, "the calls were seen"


def test_killed_while_promoting_and_sealing_the_old(tmp_path: Path) -> None:
    registry = VersionRegistry(tmp_path / "before" / "model")
    publish(registry, b"old", "run-1")
    candidate(registry)

    subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, str(tmp_path), "replace", "3"],
        check=True,
        timeout=120,
    )

    stages = []
    for root in sorted(p for p in tmp_path.iterdir() if p.name != "before"):
        killed = VersionRegistry(root / "model")
        check_consistent(killed)
        old, new = killed.versions()
        order = [
            (old.state, new.state),
            (old.state == "retired", not old.weights.exists(), old.weights_state),
        ]
        if order not in stages:
            stages.append(order)
    assert stages == [
        [("active", "candidate"), (False, False, "here")],
        [("active", "available"), (False, False, "here")],
        [("available", "active"), (False, False, "here")],
        [("retired", "active"), (True, False, "here")],
        [("retired", "active"), (True, True, "here")],
        [("retired", "active"), (True, True, "sealed")],
    ], "every stage was met, in this order and no other"


PUBLISHER = """
import sys
from pathlib import Path
from segunlearn.records.versions import VersionRegistry

name, root = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    weights = root.parent / f"{name}-{number}.safetensors"
    weights.write_bytes(f"{name} {number}".encode())
    VersionRegistry(root).publish(weights, {}, parent_sha256=None, run_id=f"{name}-{number}")
"""


def test_two_processes_publish_at_once(tmp_path: Path) -> None:
    registry = VersionRegistry(tmp_path / "model")
    command = [sys.executable, "-c", PUBLISHER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([*command, name, str(registry.root)], **pipes) for name in ("a", "b")
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        reads = 0
        while any(p.poll() is None for p in processes):
            registry.active()  # a reader never meets anything half-written
            reads += 1
    finally:
        for process in processes:
            process.communicate(timeout=60)
    assert [p.returncode for p in processes] == [0, 0]
    assert reads > 0

    found = registry.versions()
    assert [v.version for v in found] == [f"v{n:04d}" for n in range(1, 21)]
    assert {v.run_id for v in found} == {f"{name}-{n}" for name in "ab" for n in range(10)}
    for info in found:
        assert info.weights.read_bytes() == info.run_id.replace("-", " ").encode()
        assert info.sha256 == file_sha256(info.weights)
    active = registry.active()
    assert active is not None
    assert active.run_id in ("a-9", "b-9")
