"""What a script that draws figures keeps while it draws, so that --resume goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from _record import our_version, sha256
from torch import Tensor

from ldm.checkpoint.load import weights_path
from ldm.checkpoint.read import read
from ldm.checkpoint.write import write
from ldm.files import claimed, usable_folder, write_text

REQUEST = "request.json"


class Kept:
    """Tensors by name, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Those of this name, made now if they are not there."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            write(path, make())
        return dict(read(path).tensors)

    def clear(self) -> None:
        for path in (*self.folder.glob("*.safetensors"), self.folder / REQUEST):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or something in it is not ours to remove
            self.folder.rmdir()


@contextmanager
def kept(folder: Path, asked: dict[str, Any], resume: bool) -> Iterator[Kept]:
    """What is kept in `unfinished` below the folder, which goes when the block ends without an error.

    asked: all that the tensors depend on, but for their names. Without `resume` what is there is thrown away; with it
    ValueError if that was drawn otherwise. ValueError too while another process is at it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(folder / ".unfinished.claim"))
        except FileExistsError:
            raise ValueError(f"{folder} is being drawn to just now; wait until that is finished") from None
        drawn = Kept(folder / "unfinished")
        if resume:
            _check(drawn.folder / REQUEST, asked)
        else:
            drawn.clear()
        usable_folder(drawn.folder)
        write_text(drawn.folder / REQUEST, json.dumps(asked))
        yield drawn
        drawn.clear()


def request(options: argparse.Namespace, device: str, *files: str, **rest: str | int) -> dict[str, Any]:
    """What pictures depend on: program, machine, weights (`files` are the options that name some), and the rest."""
    digests = {name: sha256(weights_path(value)) for name in files if (value := getattr(options, name)) is not None}
    about = {"ldm": our_version(), "torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    return about | digests | rest


def _check(path: Path, asked: dict[str, Any]) -> None:
    if path.exists() and (was := _read(path)) != asked:
        name = next(name for name in {**was, **asked} if was.get(name) != asked.get(name))
        what = f"{name} was {was.get(name)}, and is {asked.get(name)} here"
        remedy = "repeat its options, or leave --resume out to begin anew"
        raise ValueError(f"--resume: {path.parent} was begun otherwise: {what}; {remedy}")


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text("utf-8"))
        if isinstance(tree, dict):
            return tree
        raise ValueError("no list of options is in it")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--resume: {path} is not as it was written ({error}); remove {path.parent}") from error
