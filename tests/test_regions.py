"""Compiled blocks: without a break in any, without compiling again, and the numbers are those without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

import ldm.regions
from ldm.checkpoint.load import load
from ldm.guidance import Guidance
from ldm.items import Item
from ldm.modules.blocks import ResnetBlock
from ldm.modules.conv3x3 import Conv3x3
from ldm.regions import REGIONS, compile_regions
from ldm.sampling import sample
from ldm.settings import resolve


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def draw(model: Any, prompt: str, seed: int = 0, **wishes: Any) -> Tensor:
    settings = resolve(model, **{"steps": 2, "height": 64, "width": 64, **wishes})
    with torch.inference_mode():
        return list(sample(model, [Item(prompt, "fog", seed)], settings))[-1].x


@pytest.mark.long
def test_scenes_compiles_whole_and_once_for_prompts_steps_and_guidance(fresh: None) -> None:
    """With dynamo alone, whose part this is; fullgraph makes a break an error."""
    plain, model = load("scenes"), load("scenes")
    compile_regions(model.unet, backend="eager")
    assert torch.equal(draw(model, "a red sphere"), draw(plain, "a red sphere"))
    blocks = sum(isinstance(module, REGIONS) for module in model.unet.modules())
    compiled = counters["stats"]["unique_graphs"]
    assert 0 < compiled < blocks and not counters["graph_break"]  # equal blocks share

    with torch._dynamo.config.patch(error_on_recompile=True):
        for how in ({}, {"steps": 3}, {"guidance_scale": 5.0}, {"sampler": "heun"}, {"guidance": Guidance(0.7)}):
            draw(model, "two small blue cubes", 1, **how)
    assert counters["stats"]["unique_graphs"] == compiled


@pytest.mark.long
def test_edits_of_compiled_blocks_hold(fresh: None) -> None:
    plain, model = load("scenes"), load("scenes")
    compile_regions(model.unet, backend="eager")
    for how in ({"pag": 2.0}, {"freeu": (1.3, 1.4, 0.9, 0.2)}, {}, {"pag": 2.0, "interval": (0.5, 5.0)}):
        guidance = Guidance(**how)
        found, wanted = (draw(one, "a red sphere", guidance=guidance) for one in (model, plain))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.long
def test_kernels_give_the_numbers_of_the_block(fresh: None) -> None:
    torch.manual_seed(0)
    block = ResnetBlock(16, 32, 8, groups=4, eps=1e-5).eval()
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 8)
    with torch.inference_mode():
        wanted = block(x, emb)
        compile_regions(block)
        torch.testing.assert_close(block(x, emb), wanted, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_no_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    def missing() -> str:
        raise RuntimeError("no g++ in $PATH\nand a page of advice")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(
        ValueError, match="^--compile: torch finds no C.. compiler; install g.., or leave --compile out$"
    ):
        compile_regions(ResnetBlock(16, 16, 8, groups=4, eps=1e-5))
    monkeypatch.setattr(ldm.regions.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="^--compile: Triton finds no C compiler"):
        ldm.regions.check_compiler(torch.device("meta"))


@pytest.mark.usefixtures("no_grad")
def test_a_tile_is_one_operation_to_the_compiler(fresh: None) -> None:
    conv, x = Conv3x3(160, 160, 3, padding=1), torch.randn(1, 160, 30, 34)
    compiled = torch.compile(conv, fullgraph=True, backend="eager")
    assert conv.tile_side(30, 34) == 2 and torch.equal(compiled(x), conv(x))
