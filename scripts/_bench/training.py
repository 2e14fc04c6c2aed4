"""The row of training: one step of a small UNet, forward, backward and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from _bench.floors import floor
from _bench.harness import Bench, Line, error, row, settle, take_turns
from _bench.networks import BEST, INSTALLED, shared_copy

PARAMS = {
    "block_out_channels": [128, 256, 512],
    "attention_levels": [False, True, True],
    "num_heads": 8,
    "context_dim": 768,
}


@row("train-step", "a UNet of 128 channels, batch 4, 32 x 32: forward, backward, AdamW")
def train_step(bench: Bench) -> Iterator[Line]:
    """Ours as `ldm.training` trains: its layout, fused AdamW. Theirs as their example scripts do, and likewise."""
    import torch
    from _diffusers import unet_of

    from ldm.config import build
    from ldm.training.run import lay_out

    settle(bench.tiny)
    params = PARAMS | ({"block_out_channels": [32, 64, 64]} if bench.tiny else {})
    unet = build({"target": "UNet", "params": params}, "the row")
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)  # zero at first: nothing would flow back
    theirs = owned(unet_of({"unet": {"params": params}}, _Holder(unet)))
    best = owned(shared_copy(theirs)).to(memory_format=torch.channels_last)
    lay_out(unet)

    side, made = 16 if bench.tiny else 32, torch.Generator().manual_seed(1)
    x, noise = (torch.randn(4, 4, side, side, generator=made) for _ in range(2))
    t, context = torch.tensor([10, 300, 500, 900]), torch.randn(4, 77, 768, generator=made)
    turned = x.contiguous(memory_format=torch.channels_last)
    sides = {
        "ours": step(unet, lambda: unet(turned, t, context=context), noise, fused=True),
        INSTALLED: step(theirs, lambda: theirs(x, t, encoder_hidden_states=context).sample, noise),
        f"{BEST}, fused AdamW": step(
            best, lambda: best(turned, t, encoder_hidden_states=context).sample, noise, fused=True
        ),
    }
    turns = take_turns(sides, bench.rounds, counted=INSTALLED)
    weights = sum(p.numel() for p in unet.parameters()) * 4
    # the optimizer reads weight, gradient and two moments, and writes three of them
    least = floor(turns.operations[INSTALLED], torch.float32, tiny=bench.tiny)
    least += floor(0, torch.float32, weights=7 * weights, tiny=bench.tiny)
    losses = {name: once() for name, once in sides.items()}  # after as many steps of each
    for peer in list(sides)[1:]:
        off = error(losses["ours"], losses[peer])
        must = ">= 1.1" if peer == INSTALLED else ""
        yield Line(f"float32, {peer}", turns.seconds["ours"], turns.seconds[peer], must, least, off)


class _Holder:
    def __init__(self, unet: Any) -> None:
        self.unet = unet


def owned(module: Any) -> Any:
    """With weights of its own, and gradients."""
    import torch

    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    module.train()
    return module.requires_grad_(True) if torch.is_grad_enabled() else module


def step(module: Any, predict: Callable[[], Any], noise: Any, fused: bool | None = None) -> Callable[[], Any]:
    """One step of training; its answer is the loss."""
    import torch

    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=fused)

    def once() -> Any:
        loss = torch.nn.functional.mse_loss(predict(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()[None]

    return once
