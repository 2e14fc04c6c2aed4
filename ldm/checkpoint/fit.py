"""A model takes all of its tensors by name, finite, of its shapes, and none is left over; or one error says why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor, nn

from ldm.checkpoint.mapped import MappedFiles
from ldm.checkpoint.read import CheckpointError

_ONE_THREAD = Lock()
REMEDIES = {  # for parts that a file may lack
    "unet": "use a complete file",
    "autoencoder": "use a complete file, or give autoencoder=FILE, one that holds it",
    "text_encoder": "use a complete file, or give text_encoder=FILE, one that holds it",
}


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    source: str,
    dtype: torch.dtype = torch.float32,
    child_dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Give a model its weights; CheckpointError names `path`, and what the model was built from: `source`.

    dtype: what they become; child_dtypes: exceptions, by the name of a child module.
    """
    check_fit(model, tensors, path, source)
    dtypes = {name: (child_dtypes or {}).get(name.partition(".")[0], dtype) for name in tensors}
    files = MappedFiles()
    kept = {name: _become(value, dtypes[name], files) for name, value in tensors.items()}
    check_finite(kept, path)
    model.load_state_dict(kept, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def _become(value: Tensor, dtype: torch.dtype, files: MappedFiles) -> Tensor:
    if not value.is_floating_point() or value.dtype == dtype:
        return value
    made = value.to(dtype)
    files.give_back(value)
    return made


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, source: str) -> None:
    """One CheckpointError that counts every misfit and shows the first five of each kind."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    integers = [
        f"{name} {tensors[name].dtype}"
        for name, value in expected.items()
        if name in tensors and value.is_floating_point() and not tensors[name].is_floating_point()
    ]
    for part, remedy in REMEDIES.items():
        names = [name for name in expected if name.startswith(f"{part}.")]
        if names and not any(name in tensors for name in names):
            raise CheckpointError(f"{path}: holds no {part.replace('_', ' ')}, which {source} describes; {remedy}")
    faults = [
        f"{len(names)} {words} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for names, words in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (reshaped, "of another shape"),
            (integers, "of no floating-point dtype"),
        )
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{path}: does not fit {source}, tensors are {', '.join(faults)}; use the config this file was made for"
        )


def stored(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """As they go into a file, weights: `cast`, and finite."""
    kept = cast(tensors, dtype)
    check_finite(kept, path)
    return kept


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Contiguous, on the CPU, and of `dtype` if they are no integers; None keeps it."""
    return {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in tensors.items()
    }


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    with _one_thread():
        broken = next((name for name, value in tensors.items() if not is_finite(value)), None)
    if broken is not None:
        dtype = tensors[broken].dtype
        raise CheckpointError(
            f"{path}: {broken} holds NaN or infinity as {dtype}; use an intact file, or a wider dtype"
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One reads as fast as a disk gives. More of them would wait for each other after each of 2,000 tensors, which on
    a machine that is busy elsewhere takes five times as long."""
    with _ONE_THREAD:  # or of two that load at once, the later would find one thread, and leave it so
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def is_finite(value: Tensor) -> bool:
    """Whether no number of it is NaN or infinite. The extremes tell, ten times faster than `isfinite`."""
    if not value.is_floating_point() or value.numel() == 0:
        return True
    value = value.float() if value.element_size() == 1 else value  # torch compares no 8-bit numbers
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(value))
