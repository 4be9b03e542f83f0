"""The page on which a person tags images, and the list that it saves."""

from __future__ import annotations

import pytest
import torch

from replay_images import SHAPE
from segunlearn.errors import InvalidInputError
from segunlearn.replay.generator import build_generator
from segunlearn.replay.tagging import DRAWN, Tags, latents_of, read_tags, tagging_page

NAME = "1234abcd"
DIGEST = NAME + "0" * 56


def test_page_shows_generated_and_real_images_and_asks_the_network_for_nothing() -> None:
    generator = build_generator(SHAPE, 0)
    text = tagging_page(generator, DIGEST, [("ab<12", torch.zeros(1, 16, 32))], samples=3, seed=4)
    names = [part.split('"')[0] for part in text.split('data-image="')[1:]]
    assert names == [*(f"sample-1234abcd-4-{i}" for i in range(3)), "ab&lt;12"]
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    with pytest.raises(InvalidInputError):
        tagging_page(generator, DIGEST, [], samples=0, seed=0)
    with pytest.raises(InvalidInputError):
        tagging_page(generator, DIGEST, [], samples=DRAWN + 1, seed=0)


def test_list_is_read_as_it_was_saved() -> None:
    text = "image,feature\nsample-1234abcd-4-1,yes\nsample-1234abcd-4-0,no\n1.2.3,YES\nab12,no\n"
    tags = read_tags(text)
    assert tags == Tags({"1.2.3": True, "ab12": False}, {(NAME, 4, 1): True, (NAME, 4, 0): False})
    generator = build_generator(SHAPE, 0)
    latents = latents_of(generator, DIGEST, tags.samples)
    drawn = generator.draw(DRAWN, 4)
    assert torch.equal(latents, drawn[[1, 0]])
    shown = generator.images(drawn[:2])
    torch.testing.assert_close(generator.images(latents), shown[[1, 0]])
    with pytest.raises(InvalidInputError, match="2 of 2 tagged samples are of another generator"):
        latents_of(generator, "f" * 64, tags.samples)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("picture,feature\na,yes\n", "columns"),
        ("image,feature\na,perhaps\n", "line 2"),
        ("image,feature\na,yes\na,no\n", "twice"),
        (f"image,feature\nsample-{NAME}-0-1,yes\nsample-{NAME}-00-1,no\n", "twice"),
        (f"image,feature\nsample-{NAME}-0-{DRAWN},yes\n", "no such sample"),
        ("image,feature\nsample-0-1,yes\n", "does not name its generator"),
        ("", "columns"),
    ],
)
def test_wrong_lists_are_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        read_tags(text)
