"""torch.compile for a network's repeated blocks: seconds, where a whole network takes minutes.

Blocks of one kind and one shape share what is compiled, and steps, prompts, seeds and guidance scales change nothing in
it. Other shapes (pictures in a batch, their size, chunks of a prompt) are compiled when they first come.
"""

from __future__ import annotations

import shutil

import torch
import torch._dynamo
from torch import nn

from ldm.modules.attention import AttentionBlock, BasicTransformerBlock
from ldm.modules.blocks import ResnetBlock

REGIONS = (ResnetBlock, BasicTransformerBlock, AttentionBlock)
MOST_SHAPES = 256
"""For how many shapes one kind of block is compiled. torch gives up after 8, and SD 1 has 15 of res-blocks."""


def compile_regions(network: nn.Module, backend: str = "inductor") -> None:
    """Compiles the blocks in place, when they are first called; what a network is called with does not change.

    backend: torch's name of what compiles them. ValueError where there is no compiler. An edit of a block (PAG, FreeU)
    is compiled with it, so those cost a few seconds of their own.
    """
    check_compiler(next(network.parameters()).device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SHAPES)
    for module in network.modules():
        if isinstance(module, REGIONS):
            module.compile(fullgraph=True, dynamic=False, backend=backend)


def check_compiler(device: torch.device) -> None:
    """ValueError unless kernels can be compiled for the device."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler  # it knows where torch looks for one

        try:
            get_cpp_compiler()
        except Exception as error:
            raise ValueError("--compile: torch finds no C++ compiler; install g++, or leave --compile out") from error
    elif shutil.which("cc") is None and shutil.which("gcc") is None:
        raise ValueError("--compile: Triton finds no C compiler; install gcc, or leave --compile out")
