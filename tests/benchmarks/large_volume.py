"""Memory for segmenting one image of 512 x 512 x 1000 voxels, in a process of its own.

``python tests/benchmarks/large_volume.py [--depth 1000]`` writes ``results/large_volume.json``. The
network is one convolution, as what is measured is everything around it. Resident memory that is
backed by the file of probabilities is told apart: the kernel takes it back when it is needed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from report import ROOT, bar, write

sys.path.insert(0, str(ROOT / "tests"))
from segunlearn.inference import Segmenter
from segunlearn.networks import ModelConfig
from segunlearn.volumes import Volume, read_volume, write_volume

#: Most memory that is its own, in MiB; see docs/security.md.
BOUND = 6144


def memory() -> tuple[float, float]:
    """Own and file-backed resident memory, MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Rss")}
    return int(found["RssAnon"]) / 1024, (int(found["RssFile"]) + int(found["RssShmem"])) / 1024


def main() -> None:
    """Segment it while the memory is watched."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=1000)
    options = parser.parse_args()
    shape = (512, 512, options.depth)
    config = ModelConfig(
        labels=("core", "shell"), spacing=(1.0, 1.0, 1.0), patch_size=(128, 128, 64), overlap=0.25
    )
    peaks, over = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peaks[:] = map(max, peaks, memory())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nii.gz"
        values = np.zeros(shape, np.int16)
        values[100:400, 100:400] = 500
        write_volume(Volume(values, np.eye(4), "CT"), path)
        del values
        before, watcher = memory()[0], threading.Thread(target=watch)
        watcher.start()
        began = time.monotonic()
        try:
            segmenter = Segmenter(torch.nn.Conv3d(1, 3, 1), config, "cpu")
            label = segmenter.predict(read_volume(path, modality="CT"))
        finally:
            over.set()
            watcher.join()
    assert label.shape == shape
    figures = {
        "voxels": shape,
        "before_megabytes": round(before),
        "own_peak_megabytes": round(peaks[0]),
        "file_backed_peak_megabytes": round(peaks[1]),
        "seconds": round(time.monotonic() - began, 1),
    }
    bars = [bar("own memory at its peak, MiB", peaks[0], f"< {BOUND}", peaks[0] < BOUND)]
    write("large_volume", figures, bars, machine=platform.platform())


if __name__ == "__main__":
    main()
