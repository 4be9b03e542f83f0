"""The page on which a person tags images, and the list that it saves."""

from __future__ import annotations

import pytest
import torch

from replay_images import SHAPE
from segunlearn.errors import InvalidInputError
from segunlearn.replay.generator import build_generator
from segunlearn.replay.tagging import DRAWN, Tags, latents_of, read_tags, tagging_page


def test_page_shows_generated_and_real_images_and_asks_the_network_for_nothing() -> None:
    generator = build_generator(SHAPE, 0)
    text = tagging_page(generator, [("ab<12", torch.zeros(1, 16, 32))], samples=3, seed=4)
    names = [part.split('"')[0] for part in text.split('data-image="')[1:]]
    assert names == ["sample-4-0", "sample-4-1", "sample-4-2", "ab&lt;12"]
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    with pytest.raises(InvalidInputError):
        tagging_page(generator, [], samples=0, seed=0)
    with pytest.raises(InvalidInputError):
        tagging_page(generator, [], samples=DRAWN + 1, seed=0)


def test_list_is_read_as_it_was_saved() -> None:
    text = "image,feature\nsample-4-1,yes\nsample-4-0,no\n1.2.3,YES\nab12,no\n"
    tags = read_tags(text)
    assert tags == Tags({"1.2.3": True, "ab12": False}, {(4, 1): True, (4, 0): False})
    generator = build_generator(SHAPE, 0)
    latents = latents_of(generator, tags.samples)
    drawn = generator.draw(DRAWN, 4)
    assert torch.equal(latents, drawn[[1, 0]])
    shown = generator.images(drawn[:2])
    torch.testing.assert_close(generator.images(latents), shown[[1, 0]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("picture,feature\na,yes\n", "columns"),
        ("image,feature\na,perhaps\n", "line 2"),
        ("image,feature\na,yes\na,no\n", "twice"),
        ("image,feature\nsample-0-1,yes\nsample-00-1,no\n", "twice"),
        (f"image,feature\nsample-0-{DRAWN},yes\n", "no such sample"),
        ("", "columns"),
    ],
)
def test_wrong_lists_are_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        read_tags(text)
