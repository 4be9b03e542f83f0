"""The generator: shapes, latents, texture, and its training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from replay_images import MODEL, SETTINGS, SHAPE, blobs, trained
from segunlearn.errors import CancelledError, IntegrityError, InvalidInputError
from segunlearn.networks import ModelConfig, build_network, save_weights
from segunlearn.replay.generator import (
    GeneratorConfig,
    build_generator,
    load_generator,
    spectrum_of,
    textured,
)
from segunlearn.replay.memory import images_of, nearest_neighbours, reconstruction_errors
from segunlearn.replay.sampling import replayed_studies
from segunlearn.replay.training import train_generator


def test_shape_follows_the_network_and_is_halved_where_patches_are_large() -> None:
    assert SHAPE.shape == SHAPE.patch == (16, 32)
    large = GeneratorConfig.of(ModelConfig(patch_size=(96, 96, 96)))
    assert (large.shape, large.patch) == ((48, 48, 48), (96, 96, 96))
    generator = build_generator(dataclasses.replace(large, channels=(2, 2, 2), latent=2), 0)
    assert generator.images(torch.zeros(1, 2), seed=1).shape == (1, 1, 96, 96, 96)
    assert GeneratorConfig.from_json(large.to_json()) == large


@pytest.mark.parametrize(
    "wrong", [{"shape": (20, 32)}, {"latent": 0}, {"patch": (16,)}, {"channels": ()}]
)
def test_wrong_configurations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        GeneratorConfig(**{"shape": (16, 32), "patch": (16, 32), **wrong})  # type: ignore[arg-type]


def test_latents_are_drawn_with_the_measured_spread() -> None:
    generator = build_generator(SHAPE, 0)
    generator.centre.copy_(torch.tensor([1.0, 0.0, 0.0, -2.0]))
    generator.spread.copy_(torch.diag(torch.tensor([0.5, 1.0, 2.0, 1.0])))
    drawn = generator.draw(20_000, 3)
    torch.testing.assert_close(drawn.mean(0), generator.centre, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), generator.spread.diag(), atol=0.05, rtol=0)
    assert torch.equal(drawn[:5], generator.draw(20_000, 3)[:5])
    assert not torch.equal(drawn[:5], generator.draw(5, 4))


def test_texture_has_the_strength_of_the_residuals_at_each_frequency() -> None:
    white = 0.3 * torch.randn(64, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    spectrum = spectrum_of(white)
    torch.testing.assert_close(spectrum[1:12], torch.full((11,), 0.3), atol=0.02, rtol=0)
    again = textured(torch.Size((64, 1, 32, 48)), spectrum, 5)
    torch.testing.assert_close(spectrum_of(again)[1:12], spectrum[1:12], atol=0.02, rtol=0)
    assert float(again.std()) == pytest.approx(0.3, abs=0.02)


def test_training_learns_the_images() -> None:
    generator, studies = trained(), blobs(12)
    random = build_generator(SHAPE, 0)
    learnt = reconstruction_errors(generator, studies, MODEL)
    before = reconstruction_errors(random, studies, MODEL)
    assert sum(learnt.values()) < 0.25 * sum(before.values())
    assert generator.training is False
    assert float(generator.texture.sum()) > 0


def test_killed_training_goes_on_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = train_generator(blobs(6), MODEL, SHAPE, SETTINGS)
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > 45

    with pytest.raises(CancelledError):
        train_generator(blobs(6), MODEL, SHAPE, SETTINGS, run_dir=tmp_path, cancel=cancel)
    steps: list[int] = []
    again = train_generator(
        blobs(6), MODEL, SHAPE, SETTINGS, run_dir=tmp_path, report=lambda p: steps.append(p.step)
    )
    assert min(steps) > 40
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_checkpoint_of_other_images_is_never_used(tmp_path: Path) -> None:
    train_generator(blobs(6), MODEL, SHAPE, SETTINGS, run_dir=tmp_path)
    other = train_generator(blobs(5), MODEL, SHAPE, SETTINGS, run_dir=tmp_path)
    fresh = train_generator(blobs(5), MODEL, SHAPE, SETTINGS)
    assert torch.equal(other.centre, fresh.centre)


def test_one_image_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="would be that image"):
        train_generator(blobs(1), MODEL, SHAPE, SETTINGS)


def test_weights_come_back_and_a_changed_file_is_told(tmp_path: Path) -> None:
    generator = build_generator(SHAPE, 4)
    digest = save_weights(generator, tmp_path / "g.safetensors")
    back = load_generator(tmp_path / "g.safetensors", SHAPE, digest)
    latents = back.draw(3, 0)
    assert torch.equal(back.images(latents, 1), generator.images(latents, 1))
    with pytest.raises(IntegrityError):
        load_generator(tmp_path / "g.safetensors", SHAPE, "0" * 64)


def test_replayed_studies_carry_the_teachers_answer_and_belong_to_nobody() -> None:
    generator, teacher = trained(), build_network(MODEL, 1)
    studies = replayed_studies(generator, teacher, MODEL, 5, 7)
    assert len({s.person for s in studies}) == 5
    for study in studies:
        assert study.image.shape == (1, 16, 32, 1)
        with torch.no_grad():
            answer = teacher.eval()(study.image[None, ..., 0]).argmax(1)[0, ..., None]
        assert torch.equal(study.label.long(), answer)
    again = replayed_studies(generator, teacher, MODEL, 5, 7)
    assert all(torch.equal(a.image, b.image) for a, b in zip(studies, again, strict=True))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"patch_size": (32, 32, 1)}, r"patch \(16, 32\), not \(32, 32\)"),
        ({"patch_size": (16, 1, 32)}, "patch_size"),
        ({"spacing": (3.0, 1.0, 1.0)}, r"spacing \(1.0, 1.0\), not \(3.0, 1.0\)"),
        ({"normalisation": "ct"}, "normalisation zscore, not ct"),
    ],
)
def test_generator_of_another_network_is_refused(other: dict[str, Any], said: str) -> None:
    config = dataclasses.replace(MODEL, **other)
    with pytest.raises(InvalidInputError, match=f"{said}.*Train a generator for this network"):
        replayed_studies(build_generator(SHAPE, 0), build_network(config, 0), config, 2, 0)


def test_generator_fits_what_takes_the_same_patches() -> None:
    SHAPE.check_fits(dataclasses.replace(MODEL, labels=("a", "b"), spacing=(1.0, 1.0, 5.0)))
    SHAPE.check_fits(dataclasses.replace(MODEL, ct_window=(0.0, 1.0)))  # not used: z-scores
    unknown = dataclasses.replace(SHAPE, spacing=())
    with pytest.raises(InvalidInputError, match="spacing unknown"):
        unknown.check_fits(MODEL)


def test_patch_of_a_study_does_not_depend_on_who_stands_beside_it() -> None:
    """Else what a person tagged is not what is taken out."""
    label = torch.zeros(40, 60, 1, dtype=torch.uint8)
    wide = [dataclasses.replace(s, image=torch.rand(1, 40, 60, 1), label=label) for s in blobs(4)]
    generator = build_generator(SHAPE, 0)
    shown = images_of(generator, wide, MODEL)
    assert torch.equal(images_of(generator, [wide[3], wide[1]], MODEL), shown[[3, 1]])
    assert not torch.equal(images_of(generator, wide, MODEL, seed=1), shown)


def test_nearest_neighbours_are_found() -> None:
    generator = build_generator(SHAPE, 0)
    known = images_of(generator, blobs(6), MODEL)
    found = nearest_neighbours(known[[4, 1]] + 0.01, known)
    assert [n.nearest for n in found] == [4, 1]
    assert found[0].error == pytest.approx(1e-4, rel=0.01)
