"""A model whose parts take turns on a device that cannot hold them all: encoder of text, network, autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.models.latent_diffusion import LatentDiffusion


class Offload:
    """Weights stay on the CPU, and those of one part at a time are copied to the device; what was computed stays there.

    Several models may join, such as one and its refiner. The pictures are the same, bit for bit.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._inside: nn.Module | None = None
        self._home: list[tuple[Tensor, Tensor]] = []  # tensors of the part inside, and their values on the CPU

    def join(self, model: LatentDiffusion) -> None:
        """A model on the CPU: its three large parts take turns from now on, the others go to the device for good."""
        model.offload = self
        turns = (model.text_encoder, model.unet, model.autoencoder)
        for child in model.children():
            if child not in turns:
                child.to(self.device)
        model.unet.register_forward_pre_hook(lambda unet, _: self.bring(unet))

    @torch.inference_mode(False)  # weights are ordinary tensors
    def bring(self, part: nn.Module) -> None:
        """To the device, and what was there away."""
        if part is self._inside:
            return
        for tensor, home in self._home:
            tensor.data = home
        self._home = [(tensor, tensor.data) for tensor in (*part.parameters(), *part.buffers())]
        for tensor, home in self._home:
            tensor.data = home.to(self.device, copy=True)
        self._inside = part
