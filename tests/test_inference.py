"""Sliding-window inference: networks whose mask is known in closed form."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segunlearn import inference
from segunlearn.errors import CancelledError, IntegrityError, InvalidInputError
from segunlearn.inference import Prediction, Segmenter, choose_device
from segunlearn.networks import ModelConfig, build_network, save_weights
from segunlearn.records.versions import VersionRegistry
from segunlearn.transforms import preprocess
from segunlearn.volumes import Volume

#: Leaves intensities in [-1, 1] as they are, and so networks below see what the test wrote.
CONFIG = ModelConfig(
    labels=("bright",),
    patch_size=(32, 16, 16),
    features=(4, 4, 4, 4, 4, 4),
    normalisation="ct",
    ct_window=(-1.0, 1.0),
)
PATCHES_2D = [(1, 32, 16), (16, 1, 32), (32, 16, 1)]

ORIENTATIONS = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


class Threshold(nn.Module):
    """Says ``bright`` exactly where the first channel is above 0; knows each voxel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.windows.append(tuple(image.shape))
        assert not self.training
        assert not torch.is_grad_enabled()
        return torch.cat([-image[:, :1], image[:, :1]], dim=1)


def affine_of(matrix: npt.NDArray[Any], spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Any:
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag(spacing)
    affine[:3, 3] = (10, -20, 30)
    return affine


def noise(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    """Intensities in [-1, -0.1] and [0.1, 1]."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.uniform(0.1, 1, shape) * rng.choice([-1, 1], shape), np.float32)


def above_zero(volume: Volume) -> npt.NDArray[np.bool_]:
    return np.asarray(volume.array, np.float32) > 0


# exactly the mask, on exactly the input's grid


@given(
    matrix=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    tilt=st.sampled_from([0.0, 0.2]),
    config=st.sampled_from(
        [
            CONFIG,
            dataclasses.replace(CONFIG, overlap=0.25),
            *(dataclasses.replace(CONFIG, spatial_dims=2, patch_size=p) for p in PATCHES_2D),
        ]
    ),
)
def test_the_mask_is_the_threshold_in_any_orientation_and_size(
    matrix: npt.NDArray[Any], shape: tuple[int, int, int], tilt: float, config: ModelConfig
) -> None:
    cos, sin = np.cos(tilt), np.sin(tilt)
    oblique = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ matrix
    volume = Volume(noise(shape), affine_of(oblique), "CT")
    segmenter = Segmenter(Threshold(), config, "cpu")

    result = segmenter.predict(volume)

    np.testing.assert_array_equal(result.array, above_zero(volume))
    assert result.array.dtype == np.uint8
    assert result.same_grid(volume)
    assert result.modality == "CT"
    assert result.array.flags["C_CONTIGUOUS"]
    probabilities = segmenter.predict_probabilities(volume)
    assert probabilities.dtype == np.float32
    expected = 1 / (1 + np.exp(-2 * volume.array.astype(np.float64)))
    np.testing.assert_allclose(probabilities[1], expected, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)


def test_a_half_space_at_another_spacing() -> None:
    """A plane x + 2 y - z = 0 in the patient; the mask is wrong only next to it."""
    oblique = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    affine = affine_of(oblique, (0.8, 1.5, 2.5))
    shape = (40, 30, 20)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    x, y, z = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)
    distance = (x + 2 * y - z) / np.sqrt(6)
    volume = Volume(np.tanh(distance / 20), affine)
    config = dataclasses.replace(CONFIG, spacing=(1.3, 1.3, 1.3))

    result = Segmenter(Threshold(), config, "cpu").predict(volume)

    sure = np.abs(distance) > 0.5
    np.testing.assert_array_equal(result.array[sure] == 1, distance[sure] > 0)
    assert sure.mean() > 0.9


def test_several_labels_and_channels() -> None:
    class Largest(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * 20  # class k is where channel k is the largest

    config = dataclasses.replace(CONFIG, labels=("a", "b", "c"), in_channels=4)
    array = np.random.default_rng(0).permuted(
        np.broadcast_to([-0.8, -0.2, 0.3, 0.9], (20, 33, 18, 4)), axis=-1
    )
    for matrix in ORIENTATIONS[::5]:
        result = Segmenter(Largest(), config, "cpu").predict(Volume(array, affine_of(matrix)))
        np.testing.assert_array_equal(result.array, array.argmax(axis=-1))


# windows


def test_windows_have_the_patch_size_and_the_batch_is_kept() -> None:
    network = Threshold()
    Segmenter(network, CONFIG, "cpu", window_batch=3).predict(
        Volume(noise((50, 30, 20)), np.eye(4))
    )
    assert {w[1:] for w in network.windows} == {(1, 32, 16, 16)}
    assert max(w[0] for w in network.windows) == 3


def test_windows_equal_one_pass_for_a_network_that_is_the_same_everywhere() -> None:
    """Voxel by voxel exactly; with surroundings up to what a window cannot see at its faces.

    Two convolutions of width 3 are wrong in a window's outer 2 voxels, where the window's weight
    is least; most voxels have no such window at all.
    """
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, patch_size=(32, 32, 32))
    volume = Volume(noise((70, 40, 49)), np.eye(4))
    for width, most, median in ((1, 1e-5, 1e-6), (3, 0.1, 1e-4)):
        network = nn.Sequential(
            nn.Conv3d(1, 4, width, padding="same"),
            nn.Tanh(),
            nn.Conv3d(4, 2, width, padding="same"),
        ).eval()
        with torch.no_grad():
            once = network(preprocess(volume, config).tensor[None])[0].softmax(0).numpy()

        windows = Segmenter(network, config, "cpu").predict_probabilities(volume)

        inner = (slice(None), *[slice(width, -width)] * 3)
        difference = np.abs(windows - once)[inner]
        assert difference.max() < most
        assert np.median(difference) < median
        assert once[inner].std() > 0.02, "the network says something"


def test_neighbouring_windows_are_blended_without_a_seam() -> None:
    class Position(nn.Module):
        """Logit = the place within the window, so a seam would be a jump by the window's size."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            place = torch.linspace(-1, 1, image.shape[2]).reshape(1, 1, -1, 1, 1)
            return torch.cat([torch.zeros_like(image), place + 0 * image], dim=1)

    volume = Volume(np.zeros((100, 16, 16)), np.eye(4))
    bright = Segmenter(Position(), CONFIG, "cpu").predict_probabilities(volume)[1, :, 8, 8]
    assert np.abs(np.diff(bright)).max() < 0.1
    assert bright.max() - bright.min() > 0.2


@pytest.mark.parametrize("patch", PATCHES_2D)
def test_a_2d_network_sees_each_slice_alone(patch: tuple[int, int, int]) -> None:
    class AboveHalfOfTheSlice(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            top = image.amax(dim=(1, 2, 3), keepdim=True)
            return torch.cat([top / 2 - image, image - top / 2], dim=1)

    config = dataclasses.replace(CONFIG, spatial_dims=2, patch_size=patch, spacing=(1.0, 1.0, 1.0))
    axis = patch.index(1)
    shape = [min(p, 13) for p in patch]
    shape[axis] = 40  # more slices than go through at once
    ras = np.abs(noise(tuple(shape))) * np.linspace(0.1, 1, 40).reshape(
        [-1 if i == axis else 1 for i in range(3)]
    )
    others = tuple(i for i in range(3) if i != axis)
    expected = ras > ras.max(axis=others, keepdims=True) / 2
    # thick slices, and the same image stored in another axis order
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 7.0
    for order in itertools.permutations(range(3)):
        matrix = np.eye(3)[:, list(order)]
        stored = Volume(ras.transpose(order), affine_of(matrix, tuple(spacing[o] for o in order)))

        result = Segmenter(AboveHalfOfTheSlice(), config, "cpu").predict(stored)

        np.testing.assert_array_equal(result.array, expected.transpose(order))


def test_the_same_volume_gives_the_same_mask_and_is_left_alone() -> None:
    array = noise((20, 40, 20))
    array.setflags(write=False)
    config = dataclasses.replace(CONFIG, patch_size=(16, 32, 16), dropout=0.5)
    segmenter = Segmenter(build_network(config, seed=0).train(), config, "cpu")

    first, second = (segmenter.predict_probabilities(Volume(array, np.eye(4))) for _ in range(2))

    np.testing.assert_array_equal(first, second)
    assert not segmenter.network.training


# progress, cancelling, time


@given(
    shape=st.tuples(*[st.integers(1, 50)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.6]),
    batch=st.integers(1, 5),
    patch=st.sampled_from([(32, 16, 16), *PATCHES_2D]),
)
def test_progress_rises_to_the_number_of_windows(
    shape: tuple[int, int, int], overlap: float, batch: int, patch: tuple[int, int, int]
) -> None:
    config = dataclasses.replace(
        CONFIG, overlap=overlap, patch_size=patch, spatial_dims=3 - (1 in patch)
    )
    network = Threshold()
    seen: list[tuple[int, int]] = []

    Segmenter(network, config, "cpu", window_batch=batch).predict(
        Volume(np.zeros(shape, np.float32), np.eye(4)),
        progress=lambda done, total: seen.append((done, total)),
    )

    total = sum(w[0] for w in network.windows)
    assert [t for _, t in seen] == [total] * len(network.windows)
    done = [d for d, _ in seen]
    assert done == sorted(set(done)), "every batch is progress"
    assert done[-1] == total


@pytest.mark.parametrize("patch", [(32, 16, 16), (1, 32, 16)])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_cancelling_stops_before_the_next_windows(patch: tuple[int, int, int], after: int) -> None:
    config = dataclasses.replace(CONFIG, patch_size=patch, spatial_dims=3 - (1 in patch))
    network = Threshold()
    segmenter = Segmenter(network, config, "cpu")
    volume = Volume(noise((40, 40, 40)), np.eye(4))

    for method in (segmenter.predict, segmenter.predict_probabilities):
        network.windows.clear()
        with pytest.raises(CancelledError, match="stopped"):
            method(volume, cancel=lambda: len(network.windows) >= after)
        assert len(network.windows) == after

    np.testing.assert_array_equal(segmenter.predict(volume).array, above_zero(volume))


def test_a_cancel_that_never_comes_changes_nothing() -> None:
    volume = Volume(noise((40, 20, 20)), np.eye(4))
    result = Segmenter(Threshold(), CONFIG, "cpu").predict(volume, cancel=lambda: False)
    np.testing.assert_array_equal(result.array, above_zero(volume))


def test_the_time_of_the_network_is_reported_apart() -> None:
    class Slow(Threshold):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            time.sleep(0.1)
            return super().forward(image)

    volume = Volume(noise((32, 16, 16)), np.eye(4))
    start = time.perf_counter()

    result = Segmenter(Slow(), CONFIG, "cpu").predict(volume)

    wall = time.perf_counter() - start
    assert isinstance(result, Prediction)
    assert list(result.seconds) == ["pre", "network", "post"]
    assert result.seconds["network"] >= 0.1
    assert all(span >= 0 for span in result.seconds.values())
    assert sum(result.seconds.values()) <= wall


# models and devices


def test_a_published_version_is_served_as_published(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, labels=("a", "b"))
    network = build_network(config, seed=5)
    save_weights(network, tmp_path / "weights.safetensors")
    registry = VersionRegistry(tmp_path / "model")
    info = registry.publish(tmp_path, config.to_json(), parent_sha256=None, run_id="run")
    volume = Volume(noise((32, 16, 16)), np.eye(4))

    served = Segmenter.from_version(info, "cpu")

    assert served.config == config
    expected = Segmenter(network, config, "cpu").predict_probabilities(volume)
    np.testing.assert_array_equal(served.predict_probabilities(volume), expected)

    content = bytearray(info.weights.read_bytes())
    content[-1] ^= 1
    info.weights.write_bytes(content)
    with pytest.raises(IntegrityError, match="SHA-256"):
        Segmenter.from_version(info, "cpu")


def test_a_wrong_number_of_channels_is_refused_before_the_network() -> None:
    network = Threshold()
    with pytest.raises(InvalidInputError, match="channels"):
        Segmenter(network, CONFIG, "cpu").predict(Volume(noise((8, 8, 8, 2)), np.eye(4)))
    assert network.windows == []


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(InvalidInputError, match="'banana' is no device"):
        choose_device("banana")
    for other in ("mps", "meta"):
        with pytest.raises(InvalidInputError, match=f"'{other}' is no device .*; use auto"):
            choose_device(other)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")
    with pytest.raises(InvalidInputError, match="no usable GPU"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpu_gives_the_mask_of_the_cpu() -> None:
    volume = Volume(noise((70, 50, 40)), affine_of(ORIENTATIONS[11]))
    result = Segmenter(Threshold(), CONFIG, "cuda:0").predict(volume)
    np.testing.assert_array_equal(result.array, above_zero(volume))


def test_mirroring_makes_the_answer_the_same_for_the_mirror_image() -> None:
    """A network whose kernels look one way does not treat mirror images alike; the mean does."""
    network, config = build_network(CONFIG, 3), dataclasses.replace(CONFIG, overlap=0.0)
    rng = np.random.default_rng(0)
    image = Volume(rng.uniform(-1, 1, (32, 16, 32)).astype(np.float32), np.eye(4), "CT")
    mirrored = dataclasses.replace(image, array=image.array[::-1].copy())

    def difference(axes: tuple[int, ...]) -> float:
        segmenter = Segmenter(network, config, "cpu", mirror_axes=axes)
        own = segmenter.predict_probabilities(image)
        other = segmenter.predict_probabilities(mirrored)[:, ::-1]
        return float(np.abs(own - other).max())

    assert difference(()) > 1e-3
    assert difference((0,)) < 1e-6
    assert difference((0, 2)) < 1e-6


def test_mirroring_reports_the_windows_of_all_mirror_images() -> None:
    seen: list[tuple[int, int]] = []
    network = Threshold()
    segmenter = Segmenter(network, CONFIG, "cpu", mirror_axes=(0, 1))
    image = Volume(np.ones((40, 16, 16), np.float32), np.eye(4), "CT")
    segmenter.predict(image, progress=lambda done, total: seen.append((done, total)))
    windows = sum(shape[0] for shape in network.windows)
    assert windows >= 4 * 2
    assert seen[-1] == (windows, windows)


def test_a_mirror_axis_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="mirror axes"):
        Segmenter(Threshold(), CONFIG, "cpu", mirror_axes=(3,))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
@pytest.mark.parametrize("depth", [16, 17, 40, 63])
def test_a_large_image_is_treated_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, overlap: float, depth: int
) -> None:
    """Every part sees the windows of the whole; probabilities lie in a file meanwhile."""
    config = dataclasses.replace(CONFIG, overlap=overlap)
    segmenter = Segmenter(build_network(config, 3), config, "cpu")
    array = np.random.default_rng(depth).normal(0, 300, (20, 18, depth)).astype(np.float32)
    spacing = np.array([*config.spacing, 1.0])
    prepared = preprocess(Volume(array, np.diag(spacing), "CT"), config)
    whole = segmenter.probabilities_of(prepared)
    monkeypatch.setattr(inference, "_SLAB_BYTES", 1)
    monkeypatch.setattr(inference, "_IN_MEMORY", 0)
    cores = [core for core, _ in segmenter._slabs((20, 18, depth))]
    assert [c.start for c in cores] == [0, *(c.stop for c in cores[:-1])]
    assert cores[-1].stop == depth
    assert len(cores) > 1 or depth < 40
    parts = segmenter.probabilities_of(prepared)
    assert torch.allclose(parts, whole, atol=1e-6)
    assert parts.dtype == torch.float32
