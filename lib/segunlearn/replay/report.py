"""Reports of a generator: one page with the pictures by which a person judges it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Final

import torch

from segunlearn.replay.feature import Direction
from segunlearn.replay.generator import Generator
from segunlearn.replay.memory import nearest_neighbours
from segunlearn.replay.pictures import rows, traversal

STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;"
    "color:#1b1f23;background:#fff}img{max-width:100%}.note{color:#57606a}"
    "@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}}"
)
_SHOWN: Final = 8
_HELD: Final = (
    "This page shows images of patients. It lies beside the generator's weights and is deleted "
    "with them."
)


def training_report(
    generator: Generator, trained: torch.Tensor, memory: Mapping[str, Any], *, people: int
) -> str:
    """Page about a new generator: what it makes, and what it remembers.

    Parameters
    ----------
    trained
        One image of each study that it was trained on, ``(N, C, *shape)``.
    memory
        ``auc``, ``low``, ``high``, ``trained``, ``unseen`` of the membership attack; empty where
        nobody unseen was at hand.
    people
        How many it was trained on.
    """
    latents = generator.draw(_SHOWN, 0)
    samples, textured = generator.images(latents), generator.images(latents, seed=0)
    with torch.no_grad():
        plain = generator.decode(latents)
        rebuilt = generator.decode(generator.encode(trained[:_SHOWN])[0])
    neighbours = nearest_neighbours(plain, trained)
    nearest = trained[[n.nearest for n in neighbours]]
    told = (
        f"By its reconstruction error, an image of {memory['trained']} trained people is told from "
        f"one of {memory['unseen']} unseen people with an area under the curve of "
        f"{memory['auc']:.2f} [{memory['low']:.2f}, {memory['high']:.2f}]; 0.5 is chance."
        if memory
        else "No images of unseen people were at hand, so membership could not be measured."
    )
    return page(
        "Generator of replayed images",
        f"<p>Trained on images of {people} people. What it draws belongs to nobody, but it was "
        "learnt from them.</p>",
        _picture(
            "Samples",
            rows([("drawn", samples), ("with texture", textured)]),
            "Texture gives back, as noise, what the decoder smooths away.",
        ),
        "<h2>What it remembers</h2>",
        f"<p>{html.escape(told)} A generator that saw a forgotten study is destroyed.</p>",
        _picture(
            "Nearest training images",
            rows([("drawn", plain), ("nearest", nearest)]),
            "A sample that equals its neighbour in more than what all images share is a copy.",
        ),
        _picture(
            "Training images rebuilt",
            rows([("trained on", trained[:_SHOWN]), ("rebuilt", rebuilt)]),
        ),
    )


def feature_report(
    before: Generator, after: Generator, direction: Direction, *, feature: str
) -> str:
    """Page about a feature that was taken out: traversals and samples, before and after."""
    drawn = before.draw(400, 1)
    order = direction.projection(drawn).argsort(descending=True)
    most, least = drawn[order[:_SHOWN]], drawn[order[-_SHOWN:]]
    random = drawn[:_SHOWN]
    return page(
        f"Feature taken out of a generator: {feature}",
        "<p>One latent moved along the direction of the feature, from left (without) to right "
        "(twice the distance between the means of images with and without). After, everything "
        "right of the threshold, a third of the way, should look like the threshold.</p>",
        _picture(
            "Traversal",
            rows([
                ("before", traversal(before, direction)), ("after", traversal(after, direction))
            ]),
        ),
        *(
            _picture(title, rows([("before", before.images(z)), ("after", after.images(z))]))
            for title, z in (
                ("Samples with the most of it", most),
                ("Samples with the least of it", least),
                ("Samples at random", random),
            )
        ),
        "<p class=note>Both were drawn without texture.</p>",
    )  # fmt: skip


def page(title: str, *parts: str, script: str = "") -> str:
    """Make a page that is complete in itself and asks the network for nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:" + (
        "; script-src 'unsafe-inline'" if script else ""
    )
    scripted = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{html.escape(title)}</h1>{''.join(parts)}"
        f"<p class=note>{_HELD}</p></main>{scripted}</body></html>\n"
    )


def _picture(title: str, address: str, note: str = "") -> str:
    told = f"<p class=note>{html.escape(note)}</p>" if note else ""
    return f'<h2>{html.escape(title)}</h2>{told}<img alt="{html.escape(title)}" src="{address}">'
