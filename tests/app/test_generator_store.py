"""Nothing of a generator outlives whom it knows: killed, damaged, or forgotten while it is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from audit_home import MODEL, Site
from segunlearn.app import checkpoints
from segunlearn.app.generator_store import REPORT, Generators
from segunlearn.app.replay_run import FeatureRun, ReplayRun
from segunlearn.audit.sweep import sweep
from segunlearn.cases import Case
from segunlearn.errors import ConflictError
from segunlearn.records.versions import VersionInfo
from segunlearn.replay.feature import FeatureSettings
from segunlearn.replay.training import GeneratorSettings
from unlearn_site import copy_of, known_site


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with a generator of all but the unseen people."""
    site = known_site(tmp_path_factory.mktemp("replay"), forget=1, retain=3, unseen=2)
    train(site, [*site.forget, *site.retain])
    return site


@pytest.fixture
def site(trained: Site, tmp_path: Path) -> Site:
    return copy_of(trained, tmp_path)


def train(site: Site, cases: Sequence[Case]) -> VersionInfo:
    base, settings = site.registry.active(), GeneratorSettings(steps=2, batch_size=2)
    assert base is not None
    run = ReplayRun(
        base, MODEL, site.home, site.records, device="cpu", settings=settings, shape={"latent": 16}
    )
    return run.execute(lambda: cases)


def forget(site: Site, case: Case) -> None:
    """Mark a person and fulfil the request, by the records."""
    (request,) = site.mark([case])
    forget_set = site.records.forget_set
    forget_set.transition(request, "working", actor="test", role="admin", why="a test")
    forget_set.transition(
        request, "fulfilled", actor="test", role="admin", why="a test", reached="retrained"
    )


def test_forgetting_removes_what_a_killed_publish_left(site: Site) -> None:
    """No record says whom it knows, so it goes with anybody."""
    info = Generators(site.home, MODEL).newest()
    assert info is not None
    left = [
        info.path.with_name(".staging-x") / "weights.safetensors",
        info.path / ".report.html.0123.part",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"somebody")
    forget(site, site.unseen[0])
    assert info.weights.exists(), "it never saw them"
    assert not left[0].exists()
    forget(site, site.retain[0])
    assert not info.weights.exists()
    assert not left[1].exists()


@pytest.mark.parametrize("damaged", ["its own", "that of one destroyed before"])
def test_damaged_record_keeps_no_generator_alive(
    site: Site, caplog: pytest.LogCaptureFixture, damaged: str
) -> None:
    """Nor does it end the sweep, with which a purge closes."""
    first = Generators(site.home, MODEL).newest()
    assert first is not None
    second = train(site, site.retain)
    torn = second if damaged == "its own" else first
    (torn.path / "manifest.json").write_text("{")
    forget(site, site.forget[0])
    assert second.weights.exists(), "it never saw them"
    forget(site, site.retain[0])
    assert not second.weights.exists()
    assert not (second.path / REPORT).exists()
    assert "manifest.json: cannot be read" in caplog.text
    places = sweep(site.home.root, [site.retain[0].series], set(), site.records.pseudonyms)
    assert [p.state for p in places if p.kind == "generator"] == ["absent", "absent"]


@pytest.mark.parametrize("kind", ["train", "meta_train"])
def test_checkpoint_of_another_training_stays(site: Site, kind: str) -> None:
    """Hours of work: the next training of its kind goes on from it, though a mark came between."""
    runs, pseudonyms = site.records.runs_unchecked, site.records.pseudonyms
    run_id = runs.start(kind, MODEL, {})
    runs.finish(run_id, "cancelled")
    (site.home.runs / run_id).mkdir()
    checkpoints.note(site.home.runs / run_id, site.retain, pseudonyms)
    for cases in (site.retain, [*site.retain, *site.unseen]):
        train(site, cases)
        assert [f.name for f in site.home.runs.iterdir()] == [run_id]


def feature_run(site: Site, cases: Sequence[Case]) -> FeatureRun:
    base = site.registry.active()
    assert base is not None
    tagged = {c.series: bool(i % 2) for i, c in enumerate(cases)}
    settings = FeatureSettings(steps=2)
    return FeatureRun(
        base, MODEL, site.home, site.records, device="cpu", settings=settings, tagged=tagged
    )


def test_feature_run_that_fails_leaves_no_weights(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        assert run.folder.joinpath("generator.safetensors").exists()
        raise OSError(28, "No space left on device")

    run = feature_run(site, site.retain)
    monkeypatch.setattr(Generators, "publish", refuse)
    with pytest.raises(OSError, match="No space"):
        run.execute(lambda: site.retain)
    assert site.records.runs.get(run.run_id).state == "failed"
    assert not run.folder.exists()


@pytest.mark.parametrize("moment", ["before it is asked", "after it was asked"])
def test_feature_run_never_publishes_what_knows_the_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """No image of them is tagged; their images shaped the generator that it goes on from."""
    run, publish = feature_run(site, site.unseen), Generators.publish

    def forget_first(*given: Any, **more: Any) -> Any:
        forget(site, site.retain[0])
        return publish(*given, **more)

    def watch(progress: Any) -> None:
        if (progress.phase, progress.step) == ("publish", 0):
            forget(site, site.retain[0])

    if moment == "after it was asked":
        monkeypatch.setattr(Generators, "publish", forget_first)
    else:
        run.on_progress = watch
    with pytest.raises(ConflictError, match="marked for forgetting while"):
        run.execute(lambda: site.unseen)
    assert not list(site.home.replay.rglob("*.safetensors"))
    assert not list(site.home.replay.rglob(REPORT))
    assert not run.folder.exists()
    assert site.records.runs.get(run.run_id).state == "refused"
