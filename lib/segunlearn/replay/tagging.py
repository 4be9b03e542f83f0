"""Which images show a feature: a page on which a person clicks them, and the list that it saves.

The list is CSV with the columns ``image`` and ``feature`` (yes or no). An image is a series, its
pseudonym, or ``sample-GENERATOR-SEED-NUMBER`` for a generated one; GENERATOR begins its maker's
digest.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from segunlearn.errors import InvalidInputError
from segunlearn.replay.generator import Generator
from segunlearn.replay.pictures import thumbnail
from segunlearn.replay.report import page

#: Digits of its digest that name a generator.
_NAMED: Final = 8
#: Latents of one seed, of which a page shows some: the same number gives the same latent.
DRAWN: Final = 512
_SAMPLE: Final = re.compile(r"sample-([0-9a-f]{8})-(\d{1,9})-(\d{1,4})")
_NAMELESS: Final = re.compile(r"sample-\d+-\d+")
_WORDS: Final = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_SCRIPT: Final = """
const pictures=[...document.querySelectorAll("button.image")];
const count=()=>{document.getElementById("count").textContent=
 pictures.filter(p=>p.getAttribute("aria-pressed")==="true").length+" of "+pictures.length};
pictures.forEach(p=>p.addEventListener("click",()=>{
 p.setAttribute("aria-pressed",p.getAttribute("aria-pressed")!=="true");count()}));
document.getElementById("save").addEventListener("click",()=>{
 const lines=pictures.map(p=>p.dataset.image+","+
  (p.getAttribute("aria-pressed")==="true"?"yes":"no"));
 const link=document.createElement("a");
 link.href=URL.createObjectURL(new Blob(["image,feature\\n"+lines.join("\\n")+"\\n"],
  {type:"text/csv"}));
 link.download="tags.csv";link.click();URL.revokeObjectURL(link.href)});
count();
"""
_PICKED: Final = (
    "<style>button.image{border:4px solid transparent;padding:0;background:none;cursor:pointer}"
    "button.image[aria-pressed=true]{border-color:#cf222e}</style>"
)


#: A generated image: the beginning of its generator's digest, seed and number.
Sample = tuple[str, int, int]


@dataclass(frozen=True)
class Tags:
    """Images with a feature (True) and without.

    Parameters
    ----------
    images
        By series or its pseudonym.
    samples
        Generated ones.
    """

    images: Mapping[str, bool] = field(default_factory=dict)
    samples: Mapping[Sample, bool] = field(default_factory=dict)


def tagging_page(
    generator: Generator,
    sha256: str,
    images: Sequence[tuple[str, torch.Tensor]],
    *,
    samples: int,
    seed: int,
) -> str:
    """Make a page on which a person clicks the images that show a feature.

    Parameters
    ----------
    generator
        Whose samples are shown.
    sha256
        Of its weights; names them.
    images
        Real ones ``(C, ...)`` by a name that is no identifier.
    samples
        Number of generated ones, at most ``DRAWN``.
    seed
        Of their latents.

    Raises
    ------
    InvalidInputError
        Too many samples, or nothing to show.
    """
    if not 0 <= samples <= DRAWN or not (samples or images):
        raise InvalidInputError(f"a page shows 0 to {DRAWN} samples, and at least one image.")
    drawn = []
    if samples:
        made = generator.images(generator.draw(DRAWN, seed)[:samples])
        drawn = [(f"sample-{sha256[:_NAMED]}-{seed}-{i}", image) for i, image in enumerate(made)]
    return page(
        "Which images show the feature?",
        _PICKED,
        "<p>Click every image that shows what the generator must forget, then save the list and "
        "give it to <code>segunlearn replay forget-feature --tags tags.csv</code>. Images that are "
        "not clicked count as not showing it.</p>",
        '<p><button id="save" type="button">Save the list</button> Clicked: <span id="count" '
        'aria-live="polite"></span></p>',
        *(_grid(title, shown) for title, shown in (("Generated", drawn), ("Real", list(images)))),
        script=_SCRIPT,
    )


def read_tags(text: str) -> Tags:
    """Read the list that a page saves, or that a person wrote.

    Raises
    ------
    InvalidInputError
        A column is missing, a word is neither yes nor no, or an image stands there twice.
    """
    rows = csv.DictReader(io.StringIO(text))
    if rows.fieldnames is None or not {"image", "feature"} <= set(rows.fieldnames):
        raise InvalidInputError("the list of tags needs the columns image and feature.")
    images: dict[str, bool] = {}
    samples: dict[Sample, bool] = {}
    for number, row in enumerate(rows, start=2):
        name, word = (row["image"] or "").strip(), (row["feature"] or "").strip().lower()
        if not name or word not in _WORDS:
            raise InvalidInputError(f"line {number} of the tags: name an image, and yes or no.")
        if _NAMELESS.fullmatch(name):
            raise InvalidInputError(
                f"line {number} of the tags: {name} does not name its generator, and another one "
                "makes another image of it. Write the page again (segunlearn replay page)."
            )
        found = _SAMPLE.fullmatch(name)
        sample = (found[1], int(found[2]), int(found[3])) if found else None
        if sample and sample[2] >= DRAWN:
            raise InvalidInputError(f"line {number} of the tags: there is no such sample.")
        if name in images or sample in samples:
            raise InvalidInputError(f"line {number} of the tags: this image stands there twice.")
        if sample:
            samples[sample] = _WORDS[word]
        else:
            images[name] = _WORDS[word]
    return Tags(images, samples)


def latents_of(generator: Generator, sha256: str, samples: Mapping[Sample, bool]) -> torch.Tensor:
    """Latents ``(N, latent)`` of tagged generated images, in their order.

    Raises
    ------
    InvalidInputError
        Another generator than the one of this digest made them.
    """
    others = sum(made_by != sha256[:_NAMED] for made_by, _, _ in samples)
    if others:
        raise InvalidInputError(
            f"{others} of {len(samples)} tagged samples are of another generator than the one that "
            "replays now. Write the page again (segunlearn replay page), and tag what it shows."
        )
    drawn = {seed: generator.draw(DRAWN, seed) for _, seed, _ in samples}
    return torch.stack([drawn[seed][number] for _, seed, number in samples])


def _grid(title: str, named: Sequence[tuple[str, torch.Tensor]]) -> str:
    if not named:
        return ""
    return f"<h2>{title}</h2>" + "".join(
        f'<button class="image" type="button" aria-pressed="false" data-image="{html.escape(name)}"'
        f' title="{html.escape(name)}"><img alt="{html.escape(name)}" src="{thumbnail(image)}">'
        "</button>"
        for name, image in named
    )
