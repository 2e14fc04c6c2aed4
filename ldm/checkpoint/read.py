"""A file of weights -> a flat dict of tensors. What the file is, is decided by its bytes; nothing in it is ever run."""

from __future__ import annotations

import json
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import checksums
from ldm.checkpoint.repeated import spread
from ldm.files import regular_size

_MAX_HEADER = 8 << 20  # bytes of names and shapes; the longest of a published file of this family are 0.4 MB
_MAX_TENSORS = 20_000  # a published file with both copies of SDXL's UNet would have 5,000
_MAX_BRACKETS = 4 * _MAX_TENSORS  # in a header: three for a tensor, and some in the texts
_MAX_NAME = 512  # characters
_MAX_PICKLE = 4 << 20  # bytes without the tensors' own
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # what training programs keep the weights under
_MAX_NESTING = 3
_AGAIN = "get it again: it is incomplete or damaged"
_DAMAGED = (RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, struct.error)


class CheckpointError(ValueError):
    """A file that cannot be loaded: one sentence with the file, what was found, what was expected, and the remedy."""


@dataclass(frozen=True)
class Weights:
    """What a file holds: tensors by name, and (safetensors only) texts by name."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read(path: str | Path, *, verify: bool = True) -> Weights:
    """Read a .safetensors or .ckpt file to the CPU, in the dtypes it is stored in; CheckpointError if it is neither.

    verify: hold the tensors of one of our own files against their checksums. Without, none of their bytes is read
    but those of tables that are mostly one row (`repeated`).
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the path of a .safetensors or .ckpt file in it")
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{path}: cannot be read ({why}); give the path of a .safetensors or .ckpt file"
        ) from error
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return Weights(_read_pickle(path, is_zip=head.startswith(b"PK")))
    if len(head) > 8 and head[8:9] == b"{":
        return _read_safetensors(path, size, verify)
    raise CheckpointError(
        f"{path}: {_looks_like(head, size)}; expected a safetensors file or a torch checkpoint: get it again"
    )


def _looks_like(head: bytes, size: int) -> str:
    text = head.lstrip().lower()
    if size == 0:
        return "the file is empty"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return f"this is a web page of {size} bytes, saved in place of the weights (often a login or an error page)"
    if text.startswith(b"version https://git-lfs"):
        return f"this is a git-LFS pointer of {size} bytes, not the file it points to (`git lfs pull` fetches it)"
    if not any(head):
        return f"the first bytes of this {size}-byte file are all zero, as in an unfinished download"
    return f"this {size}-byte file begins with {head[:8]!r}, which no checkpoint does"


def _read_safetensors(path: Path, size: int, verify: bool) -> Weights:
    """The header is checked first, since the library's errors name no file and a huge header costs it gigabytes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise CheckpointError(f"{path}: the header claims {length} bytes, more than {_MAX_HEADER}; {_AGAIN}")
        if 8 + length > size:
            raise CheckpointError(f"{path}: {size} bytes, but the header alone has {8 + length}; {_AGAIN}")
        header = file.read(length)
    if header.count(b"{") + header.count(b"[") > _MAX_BRACKETS:  # before they become objects
        raise CheckpointError(f"{path}: describes more than {_MAX_TENSORS} tensors, which no model has; {_AGAIN}")
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", {})
        expected = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not readable; {_AGAIN}") from error
    _check_names(entries, path)
    if expected != size:
        raise CheckpointError(f"{path}: {size} bytes, but its header describes {expected}; {_AGAIN}")
    try:
        tensors = load_file(path)
        fault = checksums.fault(header, entries, metadata, tensors if verify else None)
        texts = {str(k): str(v) for k, v in metadata.items() if k not in (checksums.KEY, *checksums.MARK)}
    except (SafetensorError, ValueError, AttributeError, LookupError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())  # the library quotes the header, line breaks and all
        raise CheckpointError(f"{path}: not a valid safetensors file ({why}); {_AGAIN}") from error
    if fault is not None:
        raise CheckpointError(f"{path}: {fault} is not what was written there, as its checksum tells; {_AGAIN}")
    try:
        return Weights(spread(tensors), texts)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; {_AGAIN}") from error


def _check_names(names: Collection[str], path: Path) -> None:
    """Before anything is made of them."""
    if len(names) > _MAX_TENSORS:
        raise CheckpointError(f"{path}: describes {len(names)} tensors, more than {_MAX_TENSORS}; {_AGAIN}")
    longest = max(names, key=len, default="")
    if len(longest) > _MAX_NAME:
        raise CheckpointError(f"{path}: a name of {len(longest)} characters, more than {_MAX_NAME}; {_AGAIN}")


# --- torch checkpoints -------------------------------------------------------------------------------------------


class _Ignored:
    """Stands for the training bookkeeping in published files: Lightning's callbacks, numpy's numbers."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_pickle(path: Path, *, is_zip: bool) -> dict[str, Tensor]:
    """Tensors and a few harmless types only; anything else in the pickle is refused, never imported."""
    _check_archive(path) if is_zip else _check_old_format(path)
    mapped = is_zip and not path.name.endswith(".safetensors")  # whose name, not whose bytes, torch.load believes
    try:
        with (
            torch.serialization.safe_globals(_harmless()),
            path.open("rb") as file,
            warnings.catch_warnings(action="ignore"),  # of tensors that are refused below
        ):
            contents = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds objects that are not tensors, which could run code, or is damaged; expected plain weights: "
            "convert it to safetensors where you trust it"
        ) from None  # torch's own text advises to switch the protection off
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: not readable as a torch checkpoint; {_AGAIN}") from error
    return _flat(contents, path)


def _check_archive(path: Path) -> None:
    """torch stores its records uncompressed, so an archive that would grow when read is not torch's."""
    try:
        if _directory_size(path) > _MAX_PICKLE:
            raise CheckpointError(f"{path}: an archive of more files than a torch checkpoint has; {_AGAIN}")
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, CheckpointError):
            raise
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: a torch checkpoint whose end is missing ({size} bytes are here); {_AGAIN}"
        ) from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(f"{path}: a compressed archive; expected a torch checkpoint: unpack it first")
    pickles = [record.file_size for record in records if record.filename.endswith(".pkl")]
    if not any(record.filename.endswith("data.pkl") for record in records):
        raise CheckpointError(f"{path}: a zip archive, but not a torch checkpoint; unpack it first")
    if max(pickles) > _MAX_PICKLE:
        raise CheckpointError(f"{path}: {max(pickles)} bytes of objects beside its tensors; {_AGAIN}")


def _directory_size(path: Path) -> int:
    """Bytes of an archive's table of contents, as its last record says; 0 if it has none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 17)))
        tail = file.read()
    short, long = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")  # zip, zip64
    size = int.from_bytes(tail[short + 12 : short + 16], "little") if short >= 0 else 0
    size64 = int.from_bytes(tail[long + 40 : long + 48], "little") if long >= 0 else 0
    return max(size % 0xFFFFFFFF, size64)  # of all ones: see the zip64 record


def _check_old_format(path: Path) -> None:
    """Before torch 1.6: four pickles, then the storages' bytes. The pickles are walked, without making an object."""
    with path.open("rb") as file:
        try:
            steps = (step for _ in range(4) for step in pickletools.genops(file))
            too_long = any(file.tell() > _MAX_PICKLE for _ in steps)
        except (ValueError, EOFError, LookupError):
            return  # damaged, as torch will say
    if too_long:
        raise CheckpointError(f"{path}: more than {_MAX_PICKLE} bytes of objects beside its tensors; {_AGAIN}")


def _harmless() -> list[Any]:
    """Names in the pickles of published files besides torch's own: none is imported, and none of them is called."""
    names = (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.dtypes.Float64DType",
        "_codecs.encode",
    )
    return [(_Ignored, name) for name in names]


def _flat(contents: object, path: Path) -> dict[str, Tensor]:
    """The dict of tensors, out of at most three that wrap it; one that holds itself is no endless search."""
    for _ in range(_MAX_NESTING):
        inner = [contents[key] for key in _WRAPPERS if key in contents] if isinstance(contents, Mapping) else []
        contents = next((mapping for mapping in inner if isinstance(mapping, Mapping)), contents)
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path}: holds one {type(contents).__name__}; expected tensors by name")
    if isinstance(words := contents.get("string_to_param"), Mapping):  # an embedding, whose tensor has a word's name
        contents = {f"string_to_param.{word}": tensor for word, tensor in words.items()}
    tensors = {k: v for k, v in contents.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name; expected the weights of a model")
    _check_names(tensors, path)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise CheckpointError(f"{path}: {name} is {kind}; expected plain numbers: convert the file first")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            shape = tuple(tensor.shape)
            raise CheckpointError(f"{path}: {name} claims shape {shape}, more than the file stores; {_AGAIN}")
    return _in_order(tensors, path)


def _in_order(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Each number of a tensor at a place of its own, without gaps: dense. In another order of dimensions, as a
    transposed matrix is, it is copied into ours; all copies together are no larger than the file."""
    turned = {name: tensor for name, tensor in tensors.items() if not tensor.is_contiguous()}
    for name, tensor in turned.items():
        if not _is_dense(tensor):
            raise CheckpointError(
                f"{path}: {name} repeats or skips numbers (shape {tuple(tensor.shape)}, strides {tensor.stride()}); "
                "expected dense tensors: save a contiguous copy"
            )
    copied = sum(tensor.numel() * tensor.element_size() for tensor in turned.values())
    if copied > path.stat().st_size:
        raise CheckpointError(f"{path}: tensors of {copied} bytes are views of fewer; save contiguous copies")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _is_dense(tensor: Tensor) -> bool:
    """Whether it would be contiguous in another order of its dimensions."""
    order = sorted(range(tensor.ndim), key=lambda i: (tensor.stride(i), tensor.shape[i]), reverse=True)
    return tensor.permute(order).is_contiguous()
