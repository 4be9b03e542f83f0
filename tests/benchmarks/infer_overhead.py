"""The server's /infer against bare MONAI sliding windows, and /info while an inference runs.

``python tests/benchmarks/infer_overhead.py [--quick]`` writes ``results/infer_overhead.json``.

The *bare* time is ``monai.inferers.sliding_window_inference`` alone: the same network, windows and
blending on the image that is preprocessed already, and nothing after it. What the server adds is
HTTP, reading the image, orienting and resampling it, the mask's way back onto the image's grid,
and writing it. That is compared with the network's time within the same request, for other work on
the machine touches both alike; and the network's time with the bare one, which alternates with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from monai.inferers import sliding_window_inference
from report import ROOT, bar, write
from requests_toolbelt import MultipartDecoder

sys.path.insert(0, str(ROOT / "tests"))
from app_sources import Server, publish_tiny, running_server
from segunlearn.inference import Segmenter
from segunlearn.networks import ModelConfig
from segunlearn.transforms import preprocess
from segunlearn.volumes import Volume, read_volume, write_volume

CONFIG = ModelConfig(
    labels=("core", "shell"),
    spacing=(2.0, 2.0, 3.0),
    patch_size=(96, 96, 48),
    features=(16, 32, 64, 128, 128, 16),
)


def make_image(shape: tuple[int, int, int]) -> Volume:
    """Smooth noise, oblique, so that the image has to be resampled."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(size=(1, 1, *(n // 8 for n in shape))))
    array = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy()
    affine = np.diag([-1.5, 1.5, 3.0, 1.0])
    return Volume((array * 400).astype(np.float32), affine, "MR")


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of an action."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def info_latencies(server: Server, until: Callable[[], bool], least: int) -> list[float]:
    """Milliseconds of ``GET /info/``, one after another, 20 ms apart."""
    found: list[float] = []
    with requests.Session() as session:
        while not until() or len(found) < least:
            seconds, answer = timed(lambda: session.get(f"{server.url}/info/", timeout=60))
            answer.raise_for_status()
            found.append(seconds * 1e3)
            time.sleep(0.02)
    return found


def figures(values: list[float], digits: int = 3) -> dict[str, float]:
    """Fastest, median, 95th percentile, slowest."""
    ordered = sorted(values)
    return {
        "fastest": round(ordered[0], digits),
        "median": round(statistics.median(ordered), digits),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], digits),
        "slowest": round(ordered[-1], digits),
        "repeats": len(ordered),
    }


def measure(shape: tuple[int, int, int], repeats: int, folder: Path) -> dict[str, Any]:
    """Run all measurements on one image."""
    version = publish_tiny(folder / "home", config=CONFIG)
    write_volume(make_image(shape), folder / "studies" / "image.nii.gz")
    segmenter = Segmenter.from_version(version)
    prepared = preprocess(read_volume(folder / "studies" / "image.nii.gz"), CONFIG)

    def bare() -> torch.Tensor:
        with torch.inference_mode():
            found = sliding_window_inference(
                prepared.tensor[None],
                CONFIG.roi_size,
                segmenter.window_batch,
                segmenter.network,
                overlap=CONFIG.overlap,
                mode="gaussian",
                sw_device=segmenter.device,
                device=segmenter.device,
            )
            if segmenter.device.type == "cuda":
                torch.cuda.synchronize()
        assert isinstance(found, torch.Tensor)
        return found

    bare_seconds: list[float] = []
    served_seconds: list[float] = []
    beyond: list[float] = []
    parts: list[dict[str, float]] = []
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with running_server(str(folder / "studies"), folder / "home", environment=threads) as server:
        url = f"{server.url}/infer/segmentation?image=image"
        bare()
        requests.post(url, timeout=3600).raise_for_status()  # warm
        for _ in range(repeats):
            bare_seconds.append(timed(bare)[0])
            seconds, answer = timed(lambda: requests.post(url, timeout=3600))
            answer.raise_for_status()
            served_seconds.append(seconds)
            params = next(
                part
                for part in MultipartDecoder.from_response(answer).parts
                if b'name="params"' in part.headers[b"Content-Disposition"]
            )
            parts.append(json.loads(params.content)["latencies"])
            beyond.append(seconds / parts[-1]["network"] - 1)
        idle = info_latencies(server, lambda: True, 100)
        spans: list[float] = []
        work = threading.Thread(
            target=lambda: spans.append(
                timed(lambda: requests.post(url, timeout=3600).raise_for_status())[0]
            )
        )
        work.start()
        busy = info_latencies(server, lambda: not work.is_alive(), 5)
        work.join()
    return {
        "bare_seconds": figures(bare_seconds),
        "served_seconds": figures(served_seconds),
        "served_network_seconds": figures([p["network"] for p in parts]),
        "beyond_its_network_time": figures(beyond, 4),
        "served_parts_seconds": {
            key: round(statistics.median(p[key] for p in parts), 4) for key in parts[0]
        },
        "info_idle_ms": figures(idle, 2),
        "info_while_inferring_ms": figures(busy, 2),
        "inference_meanwhile_seconds": round(spans[0], 3),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small image, for a look")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    shape = (128, 128, 48) if arguments.quick else (192, 192, 64)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(shape, arguments.repeats, Path(folder))
    busy = found["info_while_inferring_ms"]
    share = busy["slowest"] / 1e3 / found["inference_meanwhile_seconds"]
    overhead = found["beyond_its_network_time"]["median"]
    network = found["served_network_seconds"]["fastest"] / found["bare_seconds"]["fastest"]
    write(
        "infer_overhead",
        found,
        [
            bar("/infer beyond its network time, share", overhead, "< 0.10", overhead < 0.1),
            bar("its network time / bare sliding windows", network, "< 1.10", network < 1.1),
            bar(
                "/info while an inference runs, median ms",
                busy["median"], "< 100", busy["median"] < 100,
            ),
            bar("slowest /info as a share of that inference", share, "< 0.10", share < 0.1),
        ],
        image={"shape": shape, "spacing_mm": [1.5, 1.5, 3.0]},
        model=CONFIG.to_json(),
        threads=torch.get_num_threads(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
