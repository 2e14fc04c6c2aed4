"""A training's state as one checked file of weights: model, moving average, optimizers, step, losses not logged yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.read import read
from ldm.checkpoint.write import write

State = dict[str, Any]  # "model" and "ema": state dicts; "optimizers": a list of theirs; "step"; "unlogged"
NETWORKS = ("model", "ema")


def save_state(path: Path, state: State) -> None:
    """Atomically, with a checksum of every tensor."""
    plain = []
    for optimizer in state["optimizers"]:
        own = [(i, name, value) for i, values in optimizer["state"].items() for name, value in values.items()]
        rest = [entry for entry in own if not isinstance(entry[2], Tensor)]
        plain.append({"groups": optimizer["param_groups"], "rest": rest})
    about = {"optimizers": json.dumps(plain), "step": str(state["step"]), "unlogged": json.dumps(state["unlogged"])}
    write(path, {name: tensor.detach().cpu() for name, tensor in tensors_of(state).items()}, about)


def tensors_of(state: State) -> dict[str, Tensor]:
    """All of them, by their names in the file."""
    found: dict[str, Tensor] = {f"{kind}.{k}": v for kind in NETWORKS for k, v in state[kind].items()}
    for number, optimizer in enumerate(state["optimizers"]):
        for i, values in optimizer["state"].items():
            found |= {f"optimizer.{number}.{i}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    return found


def load_state(path: Path) -> State:
    """What `save_state` wrote. CheckpointError, a ValueError, for a file that is damaged or holds something else."""
    weights = read(path)
    try:
        optimizers = [_optimizer(number, one) for number, one in enumerate(json.loads(weights.metadata["optimizers"]))]
        for name, tensor in weights.tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, i, key = rest.split(".", 2)
                optimizers[int(number)]["state"].setdefault(int(i), {})[key] = tensor.clone()  # not the file
        state: State = {kind: _below(weights.tensors, kind) for kind in NETWORKS}
        others = {"step": int(weights.metadata["step"]), "unlogged": json.loads(weights.metadata["unlogged"])}
        return state | others | {"optimizers": optimizers}
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: not the state of a training ({error}); choose another folder") from error


def load_old_state(path: Path) -> State:
    """Of trainings that began before there were checksums."""
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return {"unlogged": []} | state


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """In memory as the parameters are (channels last, say), as no file tells: fused optimizers walk through memory."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _optimizer(number: int, plain: Mapping[str, Any]) -> State:
    state: dict[int, dict[str, Any]] = {}
    for i, name, value in plain["rest"]:
        state.setdefault(int(i), {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
