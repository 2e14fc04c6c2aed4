"""A second question to the UNet while it learns: what stands where, cell by cell, in the clean picture?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ldm.data.scenes import Scene
from ldm.metrics.judge import CELL_CHANNELS, GRID, cells_loss
from ldm.modules.blocks import ResnetBlock, UpBlock, zero
from ldm.modules.unet import UNet


class Grounding(nn.Module):
    """Reads the UNet's features on the way up, once they have the latent's resolution; thrown away after training.

    Aligning inner features with what a recogniser sees in the clean picture makes diffusion training converge many
    times faster (REPA, Yu et al. 2024, arXiv:2410.06940); the procedural world itself answers for the recogniser here.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        if len(unet.up_blocks) < 2:
            raise ValueError(
                "grounding reads the level below the latent's resolution; use a UNet of two levels or more"
            )
        block = unet.up_blocks[-2]  # its output has been upsampled to the latent's resolution
        assert isinstance(block, UpBlock) and isinstance(block.resnets[-1], ResnetBlock)
        self.cells = nn.Conv2d(block.resnets[-1].conv2.out_channels, CELL_CHANNELS, 1)
        zero(self.cells)  # whose noise would pull at the UNet, a thousand times too hard, before it has learned to ask
        self.features: Tensor | None = None
        self.hook = block.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: tuple[object, ...], output: Tensor) -> None:
        self.features = output  # (B, C, 16, 16)

    def loss(self, scenes: Sequence[Scene]) -> Tensor:
        """ValueError unless the latents are 16 × 16, as those of `scenes` are."""
        assert self.features is not None, "call the UNet first"
        if self.features.shape[2:] != (GRID, GRID):
            raise ValueError(f"grounding needs latents of {GRID} x {GRID}, not {tuple(self.features.shape[2:])}")
        return cells_loss(self.cells(self.features), scenes)
