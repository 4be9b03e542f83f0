"""Read adapters with peft, where it is installed, and print how far its logits are from ours.

``.venv-peft/bin/python tests/unlearning/differences_to_peft.py FOLDER``; test_lora.py writes the
folder: of each adapter its files, the model's configuration, an image, and our logits.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file

from segunlearn.networks import ModelConfig, build_network

found = {}
for place in sorted(Path(sys.argv[1]).iterdir()):
    config = ModelConfig.from_json(json.loads((place / "model.json").read_text(encoding="utf-8")))
    ours = load_file(place / "logits.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unknown key of the configuration
        theirs = peft.PeftModel.from_pretrained(build_network(config, 1), place).eval()
    with torch.no_grad():
        adapted = theirs(ours["image"])
        merged = theirs.merge_and_unload().eval()(ours["image"])
    found[place.name] = {
        "base to adapted": float((adapted - ours["base"]).abs().max()),
        "adapted": float((adapted - ours["adapted"]).abs().max()),
        "merged": float((merged - ours["merged"]).abs().max()),
    }
sys.stdout.write(json.dumps(found) + "\n")
