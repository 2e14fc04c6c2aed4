"""Files of weights that are cut off, damaged, forged, hostile, or of another model."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from _selfcheck.case import Case, Contents, ckpt, miniature, weights

NAME = "checkpoints"
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('gone', 'w')",)


def good(**metadata: str) -> bytes:
    from safetensors.torch import save as to_bytes

    return bytes(to_bytes(weights(), {"config": json.dumps(miniature()), **metadata}))


def old() -> bytes:
    return ckpt(weights(), old=True)


def cut(make: Callable[[], bytes], share: float) -> bytes:
    whole = make()
    return whole[: int(len(whole) * share)]


def header(text: str | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file of a header by hand."""
    words = (text if isinstance(text, str) else json.dumps(text)).encode()
    return len(words).to_bytes(8, "little") + words + data


def archive(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", method) as packed:
            for name, contents in records.items():
                packed.writestr(name, contents)
        return file.getvalue()


def compressed() -> bytes:
    with zipfile.ZipFile(io.BytesIO(ckpt(weights()))) as file:
        return archive({name: file.read(name) for name in file.namelist()}, zipfile.ZIP_DEFLATED)


def edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    """The miniature's file with its tensors changed in place."""
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.clone() for name, tensor in weights().items()}
    edit(tensors)
    return bytes(to_bytes(tensors, {"config": json.dumps(miniature())}))


def first(tensors: Mapping[str, Any]) -> str:
    return next(name for name, tensor in tensors.items() if tensor.ndim > 1)


def put(number: float) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors[first(tensors)].view(-1)[3:4].fill_(number)


def without(part: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(part)]


def alter(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.update({first(tensors): change(tensors[first(tensors)])})


FOREIGN: dict[str, Contents] = {
    "empty": b"",
    "a byte": b"\0",
    "eight zeros": bytes(8),
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "a web page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "an error in XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "an error in JSON": b'{"error":"Repository not found"}',
    "a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265380512\n",
    "text": b"weights\n" * 100,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "GGUF": b"GGUF\3\0\0\0" + bytes(500),
    "gzip": lambda: gzip.compress(good()),
    "a pickle of protocol 5": lambda: pickle.dumps({"a": 1}, 5),
    "a pickle of protocol 0": lambda: pickle.dumps({"a": 1}, 0),
    "a pickle of numbers": lambda: pickle.dumps({"a": 1}, 2),
    "an archive of nothing": lambda: archive({}),
    "an archive of texts": lambda: archive({"a.txt": b"x"}),
    "an archive of other names": lambda: archive({"x/data.pkl": b"\x80\x02}."}),
    "a compressed archive": compressed,
    "a list": lambda: ckpt([1, 2]),
    "a number": lambda: ckpt(5),
    "no tensors": lambda: ckpt({"state_dict": {}}),
    "code to run": lambda: ckpt(Evil()),
    "code to run, of old": lambda: ckpt({"state_dict": Evil()}, old=True),
    "code in a pickle": lambda: pickle.dumps(Evil(), 2),
    "a whole module": lambda: ckpt({"a": __import__("torch").nn.Linear(2, 2)}),
}
HEADERS: dict[str, Contents] = {
    "a length of terabytes": (1 << 50).to_bytes(8, "little") + b"{}",
    "a length below 0": b"\xff" * 8 + b"{}",
    "a length past the end": (5000).to_bytes(8, "little") + b"{}",
    "no JSON": header("{oops"),
    "a list": header("{}").replace(b"{}", b"[]"),
    "nothing": header("{}"),
    "deep": header('{"a":' + "[" * 100_000),
    "NaN": header('{"a":NaN}'),
    "no offsets": header({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "offsets below 0": header({"a": {**ONE, "data_offsets": [-4, 0]}}, bytes(4)),
    "offsets in words": header({"a": {**ONE, "data_offsets": ["0", "4"]}}, bytes(4)),
    "offsets past the end": header({"a": {**ONE, "data_offsets": [0, 400]}}, bytes(4)),
    "offsets backward": header({"a": {**ONE, "data_offsets": [4, 0]}}, bytes(4)),
    "overlapping": header({"a": ONE, "b": ONE}, bytes(4)),
    "a gap": header({"a": ONE, "b": {**ONE, "data_offsets": [8, 12]}}, bytes(12)),
    "another shape": header({"a": {**ONE, "shape": [9]}}, bytes(4)),
    "a shape below 0": header({"a": {**ONE, "shape": [-1]}}, bytes(4)),
    "a shape that overflows": header({"a": {**ONE, "shape": [1 << 32, 1 << 32]}}, bytes(4)),
    "an unknown dtype": header({"a": {**ONE, "dtype": "F3"}}, bytes(4)),
    "a dtype of no text": header({"a": {**ONE, "dtype": 5}}, bytes(4)),
    "metadata of no texts": header({"__metadata__": {"config": 5}, "a": ONE}, bytes(4)),
    "metadata of no mapping": header({"__metadata__": [1], "a": ONE}, bytes(4)),
    "a flood": lambda: header({str(i): EMPTY for i in range(30_000)}),
    "a name of a megabyte": lambda: header({"a" * 1_000_000: EMPTY}),
    "bytes left over": lambda: good() + b"x",
    "a config that is no JSON": lambda: good(config="{"),
    "a config of code": lambda: good(config='{"target": "os.system", "params": {}}'),
    "a config of a list": lambda: good(config="[1]"),
    "a config nested deep": lambda: good(config="[" * 100_000),
}
MODELS: dict[str, Contents] = {
    "a tensor missing": lambda: edited(lambda tensors: tensors.pop(first(tensors))),
    "a tensor too many": lambda: edited(lambda tensors: tensors.update(extra=tensors[first(tensors)].clone())),
    "a part missing": lambda: edited(without("autoencoder.")),
    "no text encoder": lambda: edited(without("text_encoder.")),
    "no UNet": lambda: edited(without("unet.")),
    "another shape": lambda: edited(alter(lambda tensor: tensor[:1].clone())),
    "turned": lambda: edited(alter(lambda tensor: tensor.flatten())),
    "NaN": lambda: edited(put(float("nan"))),
    "infinity": lambda: edited(put(float("inf"))),
    "whole numbers": lambda: edited(alter(lambda tensor: tensor.to(__import__("torch").int8))),
    "yes and no": lambda: edited(alter(lambda tensor: tensor > 0)),
    "no config": lambda: ckpt(weights()),
    "no config, of old": old,
    "names in bytes": lambda: ckpt({b"a": weights()[first(weights())]}),
    "sparse": lambda: ckpt({"a": __import__("torch").eye(3).to_sparse()}),
    "on no device": lambda: ckpt({"a": __import__("torch").zeros(3, device="meta")}),
}


def cases() -> Iterator[Case]:
    files: dict[str, Contents] = {}
    for kind, make in (("safetensors", good), ("ckpt", lambda: ckpt(weights())), ("an old ckpt", old)):
        files |= {f"{kind}, cut at {share:g}": partial(cut, make, share) for share in (0.0001, 0.01, 0.5, 0.999)}
    files |= FOREIGN | {f"a header: {name}": contents for name, contents in HEADERS.items()}
    files |= {f"weights: {name}": contents for name, contents in MODELS.items()}
    for name, contents in files.items():
        yield Case(name, ("--prompt", "a red cube", "--model", "bad.ckpt"), "bad.ckpt", {"bad.ckpt": contents})
    for name in ("a web page", "code to run", "a compressed archive", "no tensors"):
        for command, argv in (("convert", ("bad.ckpt", "new.safetensors")), ("inspect_checkpoint", ("bad.ckpt",))):
            yield Case(f"{command}: {name}", argv, "bad.ckpt", {"bad.ckpt": FOREIGN[name]}, command)
