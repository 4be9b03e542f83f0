"""Site adapters in 3D: adapting from three studies, activating, and segmenting with and without.

``python tests/benchmarks/site_adapters.py`` writes ``results/site_adapters.json``.

Base and adapter segment the same image in turns, in one process. The processor time of both is
compared, which other work on the machine touches less than the clock; the clock is told, too. The
network has random weights: its size, not its skill, is what is measured here.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from infer_overhead import CONFIG as SERVED
from infer_overhead import make_image
from report import ROOT, bar, write

sys.path.insert(0, str(ROOT / "tests"))
from app_sources import publish_tiny, put_meta_model
from segunlearn.adaptation import MetaModel
from segunlearn.adaptation.generator import Generator, film_layers
from segunlearn.adaptation.inner import inner_names
from segunlearn.adapters.site import SiteAdapter
from segunlearn.app.adapter_run import AdaptRun
from segunlearn.app.adapter_support import BEST, AdaptOrder
from segunlearn.app.models import ActiveModel
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.cases import Case
from segunlearn.networks import load_weights
from segunlearn.records.versions import VersionRegistry
from segunlearn.volumes import Volume, write_volume

CONFIG = replace(SERVED, patch_size=(64, 64, 64))
SHAPE = (96, 96, 64)
SETTINGS: dict[str, Any] = {"steps": 5, "inner_set": "decoder", "learning_rate": 1e-3, "seed": 0}


def timed(action: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the clock and of the processor, and the result."""
    clock, processor = time.perf_counter(), time.process_time()
    result = action()
    return time.perf_counter() - clock, time.process_time() - processor, result


def with_meta_model(home: Home) -> None:
    """Give the version a meta model of real size: every weight moved, a generator, rates."""
    info = VersionRegistry(home.model(CONFIG.name)).get("v0001")
    network = load_weights(info.weights, CONFIG, info.sha256)
    moved = {name: p.detach() * 1.01 for name, p in network.named_parameters()}
    rates = {n: torch.full((3,), 1e-3) for n in inner_names(network, SETTINGS["inner_set"])}
    generator = Generator(CONFIG, film_layers(network)).state_dict()
    made = MetaModel(info.sha256, film_network=moved, generator=generator, film_rates=rates)
    put_meta_model(info, made.to_bytes())


def adapt(home: Home, folder: Path, method: str) -> dict[str, Any]:
    """Adapt from three studies with labels, each person held out once."""
    folder = folder / method
    folder.mkdir()
    cases = []
    for number in range(3):
        image = make_image(SHAPE)
        label = Volume((image.array > 200).astype(np.uint8), image.affine)
        paths = [folder / f"{kind}{number}.nii.gz" for kind in ("image", "label")]
        write_volume(image, paths[0])
        write_volume(label, paths[1])
        cases.append(Case(f"s{number}", f"s{number}", f"p{number}", *paths, "MR"))
    order = AdaptOrder(
        CONFIG.name, site="north", support=("s0", "s1", "s2"), method=method,
        settings=SETTINGS, device="cpu",
    )  # fmt: skip
    run = AdaptRun(order, home, Records(home), "benchmark")
    clock, processor, result = timed(lambda: run.execute(cases, lambda _: None))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": round(clock, 2),
        "processor_seconds": round(processor, 2),
        "peak_gib": round(peak, 2),
        "outcome": result["outcome"],
    }


def serve(home: Home, repeats: int) -> dict[str, Any]:
    """Activate, and segment in turns."""
    registry = VersionRegistry(home.model(CONFIG.name))
    model = ActiveModel(registry, sites=home.sites / CONFIG.name, device="cpu")
    info, base = model.segmenter()
    decoder = {n: p.detach() + 0.01 for n, p in base.network.named_parameters() if "upcat" in n}
    adapter = SiteAdapter(info.sha256, decoder, {})
    kept = model.adapters.put("south|||", adapter, run_id="b", note=lambda _: None)
    activations = []
    for _ in range(repeats):
        model._adapted.clear()

        def activate() -> None:
            model.adapters.activate("south|||", kept.version, info)
            model.adapted(info, base, kept)

        activations.append(timed(activate)[:2])
    image = make_image(SHAPE)
    times: dict[str, list[tuple[float, float]]] = {"base": [], "adapter": []}
    for number in range(repeats + 1):
        for name, chosen in (("base", None), ("adapter", kept)):
            found = timed(lambda c=chosen: model.predict(image, choose=lambda _: c))[:2]
            if number:  # the first warms up
                times[name].append(found)
    clock = {k: statistics.median(c for c, _ in v) for k, v in times.items()}
    processor = {k: statistics.median(p for _, p in v) for k, v in times.items()}
    return {
        "adapter_bytes": kept.file.stat().st_size,
        "activation_ms": round(1e3 * statistics.median(c for c, _ in activations), 1),
        "activation_processor_ms": round(1e3 * statistics.median(p for _, p in activations), 1),
        "inference_seconds": {k: round(v, 3) for k, v in clock.items()},
        "inference_processor_seconds": {k: round(v, 3) for k, v in processor.items()},
        "repeats": repeats,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        publish_tiny(home.root, config=CONFIG)
        with_meta_model(home)
        adapting = {m: adapt(home, Path(folder), m) for m in ("fine_tune", "generator+maml", BEST)}
        serving = serve(home, repeats)
    processor = serving["inference_processor_seconds"]
    more = processor["adapter"] / processor["base"] - 1
    activation = serving["activation_ms"]
    seconds = max(of["seconds"] for m, of in adapting.items() if m != BEST)  # it is two in one
    peak = max(of["peak_gib"] for of in adapting.values())
    write(
        "site_adapters",
        {"adapting": adapting, "serving": serving},
        [
            bar(
                "adapting from 3 studies in 5 steps, slower method, s",
                seconds,
                "< 60",
                seconds < 60,
            ),
            bar("its peak memory, GiB", peak, "< 4", peak < 4),
            bar("activating an adapter, ms", activation, "< 100", activation < 100),
            bar("inference with an adapter, more", round(more, 4), "< 0.05", more < 0.05),
        ],
        image={"shape": SHAPE, "spacing_mm": [1.5, 1.5, 3.0]},
        model=CONFIG.to_json(),
        settings={**SETTINGS, "held_out": "each of 3 people once"},
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
