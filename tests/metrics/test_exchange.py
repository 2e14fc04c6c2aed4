"""What an inpainting model is asked for can be had: a render of what shall be there, pasted into the mask, is right."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ldm.checkpoint.load import load_part
from ldm.data.datasets import as_bytes, as_pixels
from ldm.data.raycast import render
from ldm.images import to_images, to_tensor
from ldm.metrics.exchange import Exchange, exchanges
from ldm.metrics.judge import Judge, accuracy


@pytest.fixture(scope="module")
def asked() -> list[Exchange]:
    return exchanges(24, seed=3)


def shares(asked: list[Exchange], pictures: list[Image.Image]) -> dict[str, float]:
    judge = load_part("judge", Judge)
    return accuracy([one.after for one in asked], judge.look(torch.cat([to_tensor(picture) for picture in pictures])))


def test_the_answer_fits_into_the_mask(asked: list[Exchange]) -> None:
    answers = to_images(as_pixels(torch.stack([as_bytes(render(one.after)) for one in asked])))
    pasted = [Image.composite(answer, one.before, one.mask) for answer, one in zip(answers, asked, strict=True)]
    assert shares(asked, pasted)["whole"] >= 0.9


def test_what_was_there_is_no_answer(asked: list[Exchange]) -> None:
    assert shares(asked, [one.before for one in asked])["whole"] == 0


def test_the_same_are_asked_for_each_time(asked: list[Exchange]) -> None:
    again = exchanges(24, seed=3)
    assert [one.prompt for one in again] == [one.prompt for one in asked]
    assert all(a.mask.tobytes() == b.mask.tobytes() for a, b in zip(asked, again, strict=True))
