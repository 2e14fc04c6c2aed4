"""What a script that draws figures keeps while it draws, so that --resume goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from _record import our_version, sha256
from torch import Tensor

from ldm.checkpoint.load import weights_path
from ldm.checkpoint.read import read
from ldm.checkpoint.write import write
from ldm.files import usable_folder, write_text

REQUEST = "request.json"


class Kept:
    """Tensors by name in a folder of their own, `unfinished` in `folder`; `finish` removes it.

    request: all that they depend on, but for their names.
    """

    def __init__(self, folder: Path, request: dict[str, Any], resume: bool) -> None:
        """ValueError with `resume` if what is there was drawn otherwise. Without it what is there is thrown away."""
        self.folder = folder / "unfinished"
        if not resume:
            self.finish()
        elif (path := self.folder / REQUEST).exists() and (was := _read(path)) != request:
            name = next(name for name in {**was, **request} if was.get(name) != request.get(name))
            what = f"{name} was {was.get(name)}, and is {request.get(name)} here"
            remedy = "repeat its options, or leave --resume out to begin anew"
            raise ValueError(f"--resume: {self.folder} was begun otherwise: {what}; {remedy}")
        usable_folder(self.folder)
        write_text(self.folder / REQUEST, json.dumps(request))

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Those of this name, made now if they are not there."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            write(path, make())
        return dict(read(path).tensors)

    def finish(self) -> None:
        for path in (*self.folder.glob("*.safetensors"), self.folder / REQUEST):
            path.unlink(missing_ok=True)
        with suppress(FileNotFoundError, OSError):  # something else is in it, which is not ours to remove
            self.folder.rmdir()


def request(options: argparse.Namespace, device: str, *files: str, **rest: Any) -> dict[str, Any]:
    """Of the options that change pictures, with the digest of the weights in `files`: options that name some."""
    digests = {name: sha256(weights_path(value)) for name in files if (value := getattr(options, name)) is not None}
    about = {"ldm": our_version(), "torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    return dict(json.loads(json.dumps(about | digests | rest)))


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text("utf-8"))
        if isinstance(tree, dict):
            return tree
        raise ValueError("no list of options is in it")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--resume: {path} is not as it was written ({error}); remove {path.parent}") from error
