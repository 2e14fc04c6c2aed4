"""NaN and infinity are named, at once or at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.finite import NonFiniteError, Watch, check_finite

GOOD, NAN, INF = torch.ones(2, 3), torch.tensor([1.0, float("nan")]), torch.tensor([float("-inf")])


@pytest.mark.parametrize("bad", [NAN, INF, INF.half()])
def test_a_bad_number_is_said_with_its_stage_and_dtype(bad: Tensor) -> None:
    check_finite(GOOD, "a stage", torch.float32)
    with pytest.raises(NonFiniteError, match="^NaN or infinity in step 3, in float16: no picture"):
        check_finite(bad, "step 3", torch.float16)


def test_a_cpu_hears_at_once() -> None:
    watch = Watch(torch.float32)
    watch.see(GOOD, "step 1")
    with pytest.raises(NonFiniteError, match="step 2, in float32"):
        watch.see(NAN, "step 2")


def test_a_device_is_read_once_at_the_end_and_the_first_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "is_cpu", False)
    monkeypatch.setattr(Tensor, "tolist", lambda x: (reads.append(x.numel()), tolist(x))[1])
    watch = Watch(torch.float32)
    for i, x in enumerate([GOOD, GOOD, INF, NAN]):
        watch.see(x, f"step {i + 1}")
    assert reads == []
    with pytest.raises(NonFiniteError, match="step 3,"):
        watch.report()
    watch.report()
    assert reads == [4]


def test_sampling_reports_before_it_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device: the steps go on, and no picture comes of them."""
    from ldm import generate as room
    from ldm.items import Item
    from ldm.models.diffusion.step import Step
    from ldm.settings import Settings

    class Late(Watch):
        def see(self, x: Any, stage: str) -> None:
            self._seen.append((stage, torch.isfinite(x).all()))

    class Model:
        dtype, concat_channels, unet = torch.float32, 0, None

        def decode(self, z: Tensor) -> Tensor:
            raise AssertionError

    seen: list[int] = []
    steps = [Step(i, 1.0, x, x) for i, x in enumerate([GOOD, NAN, NAN])]
    monkeypatch.setattr(room, "Watch", Late)
    monkeypatch.setattr(room, "sample", lambda *_: iter(steps))
    settings = Settings(8, 8, 3, "ddim", "uniform", 0.0, 1.0)
    model: Any = Model()
    with pytest.raises(NonFiniteError, match="after step 2 of 3 .ddim. of seed 7"):
        list(room.generate(model, [Item("a", None, 7)], settings, on_step=lambda p: seen.append(p.step.i)))
    assert seen == [0, 1, 2]
