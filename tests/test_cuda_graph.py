"""The places of a CUDA graph, without one: a trace of torch's operations stands for it. Like a graph, it runs them on
the tensors that they had when they were recorded, and no line of Python again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import ldm
import ldm.sampling
from ldm.config import build, load_config
from ldm.cuda_graph import MOST_GRAPHS, WORTH, Recorder, constants_of
from ldm.guidance import Guidance
from ldm.items import Item
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.attention import attention
from ldm.modules.constants import Constants
from ldm.modules.unet import UNet
from ldm.refiner import Refiner
from ldm.sampling import sample
from ldm.settings import resolve


class Trace:
    """In the place of `CudaGraph`."""

    made = 0
    replays = 0

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        Trace.made += 1
        self.output = torch.empty_like(function())  # the warm-up
        self.run = make_fx(function)()
        return self.output

    def replay(self) -> None:
        Trace.replays += 1
        self.output.copy_(self.run())


@pytest.fixture
def tiny(filled: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    model = build(load_config(Path(__file__).parent / "tiny.yaml"), "tiny.yaml", expected=LatentDiffusion).eval()
    filled(model.unet)
    return model.double()  # a trace runs attention by other kernels, so the last bits differ


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Recorder]:
    """Of each network, as on a GPU; each sampling asks for it again."""
    made: dict[Any, Recorder] = {}
    monkeypatch.setattr(Trace, "made", 0)
    monkeypatch.setattr(Trace, "replays", 0)

    def recorder(network: Any) -> Recorder:
        return made.setdefault(network, Recorder(network, Trace))

    monkeypatch.setattr(ldm.sampling, "constants_of", recorder)
    return made


def draw(model: LatentDiffusion, *items: Item, refiner: Refiner | None = None, **wishes: Any) -> Tensor:
    settings = resolve(model, **{"steps": 4, "sampler": "heun", **wishes})
    with torch.inference_mode():
        return list(sample(model, items, settings, refiner=refiner))[-1].x


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


JOBS: list[tuple[dict[str, Any], list[Item]]] = [
    ({}, [Item("a red cube", "fog", 1)]),
    ({}, [Item("a cone", "fog", 2)]),  # other prompts, where the graph reads them
    ({}, [Item("a red cube", "rain", 1)]),
    ({"guidance_scale": 1.0}, [Item("a cone", "fog", 2)]),
    ({"guidance": Guidance(pag=2.0)}, [Item("a cone", "fog", 2)]),
    ({"guidance": Guidance(pag=2.0, interval=(0.5, 5.0))}, [Item("a cone", "fog", 2), Item("x", "", 3)]),
    ({"guidance": Guidance(freeu=(1.3, 1.4, 0.9, 0.2))}, [Item("a cone", "fog", 2)]),
    ({"guidance": Guidance(pag=2.0)}, [Item("[a cone:a cube:0.5]", "fog", 2)]),  # asked apart, in one shape
    ({}, [Item("a [red|blue] cube", "fog", 2), Item("a cone AND a cube", None, 4)]),
]


@pytest.mark.long
def test_pictures_are_those_without_a_graph(
    tiny: LatentDiffusion, recorders: dict[Any, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = [draw(tiny, *items, **how) for how, items in JOBS]
    assert Trace.replays > 3 * len(JOBS) and 4 < Trace.made < len(JOBS)
    monkeypatch.setattr(ldm.sampling, "constants_of", Constants)
    for found, (how, items) in zip(replayed, JOBS, strict=True):
        same(found, draw(tiny, *items, **how))


@pytest.mark.long
def test_one_recording_serves_all_jobs_of_a_shape(tiny: LatentDiffusion, recorders: dict[Any, Recorder]) -> None:
    for how, items in JOBS[:3]:
        draw(tiny, *items, **how)
    assert Trace.made == 1 and Trace.replays == 3 * 7  # heun's last step has one call
    draw(tiny, *JOBS[0][1], height=64)
    assert Trace.made == 2


@pytest.mark.long
def test_two_networks_have_a_recording_each(tiny: LatentDiffusion, recorders: dict[Any, Recorder]) -> None:
    other = build(load_config(Path(__file__).parent / "tiny.yaml"), "tiny.yaml", expected=LatentDiffusion).eval()
    item = Item("a red cube", "fog", 1)
    together = draw(tiny, item, refiner=Refiner(other, 0.5))
    assert set(recorders) == {tiny.unet, other.unet} and Trace.made == 2
    assert not torch.equal(together, draw(tiny, item))


@pytest.mark.long
def test_weights_that_change_in_place_are_heard(tiny: LatentDiffusion, recorders: dict[Any, Recorder]) -> None:
    item = Item("a red cube", "fog", 1)
    before = draw(tiny, item)
    with torch.no_grad():
        for weight in tiny.unet.parameters():
            weight.mul_(1.05)
    after, recorder = draw(tiny, item), recorders.pop(tiny.unet)
    assert Trace.made == 1 and not torch.allclose(before, after)
    assert torch.equal(after, draw(tiny, item)) and Trace.made == 2
    tiny.float()
    assert recorder.weights != Recorder(tiny.unet, Trace).weights


@pytest.mark.long
def test_whoever_watches_is_called_in_every_step(tiny: LatentDiffusion, recorders: dict[Any, Recorder]) -> None:
    layer, seen, item = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1, [], Item("a red cube", "fog", 1)
    plain = draw(tiny, item, steps=3, sampler="ddim")
    layer.attention = lambda q, k, v: (seen.append(len(q)), attention(q, k, v))[1]
    same(draw(tiny, item, steps=3, sampler="ddim"), plain)
    assert seen == [2, 2, 2]
    layer.attention = attention
    hook = tiny.unet.conv_in.register_forward_hook(lambda *_: seen.append("hook"))
    draw(tiny, item, steps=3, sampler="ddim")
    assert seen[3:] == ["hook"] * 3
    hook.remove()
    assert Trace.made == 1


def test_gradients_and_autocast_see_the_network_itself(tiny: LatentDiffusion) -> None:
    recorder = Recorder(tiny.unet, Trace)
    tiny.float()
    x, t, context = torch.randn(1, 4, 4, 4), torch.tensor([5.0]), torch.randn(1, 16, 16)
    with recorder():
        tiny.unet(x, t, context).sum().backward()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            tiny.unet(x, t, context)
    assert not recorder.recordings
    assert tiny.unet.conv_in.weight.grad.abs().max() > 0


def test_a_recording_that_fails_costs_one_line_and_no_picture(
    tiny: LatentDiffusion, recorders: dict[Any, Recorder], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(self: Trace, function: Callable[[], Tensor]) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing\nand a page of advice")

    item = Item("a red cube", "fog", 1)
    wanted = draw(tiny, item)
    recorders.clear()
    monkeypatch.setattr(Trace, "record", refuse)
    same(draw(tiny, item), wanted)
    (line,) = caplog.messages
    assert line.endswith("steps may be slower: operation not permitted when stream is capturing")


@pytest.mark.long
def test_recordings_are_bounded_and_made_only_where_they_pay(filled: Any) -> None:
    unet = filled(UNet(block_out_channels=(32,), attention_levels=False, head_channels=16, layers_per_block=1)).eval()
    recorder, t = Recorder(unet, Trace), torch.tensor([5.0])
    with torch.inference_mode(), recorder():
        for _ in range(3):
            for side in range(1, MOST_GRAPHS + 3):
                x = torch.randn(1, 4, side, 4)
                torch.testing.assert_close(unet(x, t), UNet.forward(unet, x, t))
        assert recorder.recorded == len(recorder.recordings) == MOST_GRAPHS
        for _ in range(WORTH * MOST_GRAPHS):
            unet(torch.randn(1, 4, 2, 4), t)
        unet(torch.randn(1, 4, 20, 4), t)
        assert recorder.recorded == MOST_GRAPHS + 1 and len(recorder.recordings) == MOST_GRAPHS


def test_a_cpu_has_constants_and_no_graph(tiny: LatentDiffusion) -> None:
    assert isinstance(constants_of(tiny.unet), Constants)
