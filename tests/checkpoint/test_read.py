"""Hostile and odd files: one sentence, within bounded memory, and nothing in them is imported or run."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint.fit import check_fit, is_finite
from ldm.checkpoint.read import CheckpointError, read

EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert path.name in text and "\n" not in text and "weights_only" not in text
    return text


def safetensors_bytes(header: str, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


def flood(tensors: int) -> str:
    entry = json.dumps(EMPTY)
    return "{" + ",".join(f'"{i:06}":{entry}' for i in range(tensors)) + "}"


def archive(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, contents in records.items():
            file.writestr(name, contents)
    return buffer.getvalue()


class Storage:
    """Pickled as torch pickles a storage: by its type, the name of its record, and how many numbers it claims."""

    def __init__(self, numbers: int) -> None:
        self.claim = ("storage", torch.FloatStorage, "0", "cpu", numbers)


class Claim:
    def __init__(self, numbers: int) -> None:
        self.storage, self.numbers = Storage(numbers), numbers

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.storage, 0, (self.numbers,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class TorchPickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> Any:
        return obj.claim if isinstance(obj, Storage) else None


def torch_archive(contents: object, stored: bytes = bytes(12)) -> bytes:
    """Of torch.save's form, with claims that torch.save never makes."""
    buffer = io.BytesIO()
    TorchPickler(buffer, protocol=2).dump(contents)
    return archive({"a/data.pkl": buffer.getvalue(), "a/byteorder": b"little", "a/data/0": stored, "a/version": b"3\n"})


def test_the_forged_form_is_torch_s(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(torch_archive({"a": Claim(3)}, torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes()))
    assert read(path).tensors["a"].tolist() == [1, 2, 3]


MANY = {f"r{i}": b"" for i in range(90_000)}
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "17.6 MB of empty tensors": (lambda: safetensors_bytes(flood(300_000)), "the header claims "),
    "as many as a header holds": (lambda: safetensors_bytes(flood(100_000)), "more than 20000 tensors"),
    "the same in disguise": (
        lambda: safetensors_bytes(flood(90_000).replace("data_offsets", "data\\u005foffsets")),
        "more than 20000 tensors",
    ),
    "some more than there may be": (lambda: safetensors_bytes(flood(26_000)), "describes 26000 tensors, more than"),
    "a header of brackets": (lambda: safetensors_bytes('{"a":[' + "[]," * 2_700_000 + "0]}"), "more than 20000"),
    "nested brackets": (lambda: safetensors_bytes('{"a":' + "[" * 8_000_000), "more than 20000 tensors"),
    "few brackets, nested": (lambda: safetensors_bytes('{"a":' + "[" * 70_000), "header is not readable"),
    "a long name": (lambda: safetensors_bytes(json.dumps({"a" * 1_000_000: EMPTY})), "a name of 1000000 characters"),
    "a dtype of the future": (
        lambda: safetensors_bytes(json.dumps({"a": {**EMPTY, "dtype": "F3"}})),
        "not a valid safetensors file",
    ),
    "overlapping tensors": (
        lambda: safetensors_bytes(
            json.dumps({n: {**EMPTY, "shape": [1], "data_offsets": [0, 4]} for n in "ab"}), bytes(4)
        ),
        "not a valid safetensors file",
    ),
    "a storage of terabytes": (lambda: torch_archive({"a": Claim(1 << 40)}), "a.bin"),
    "an archive of empty files": (lambda: archive(MANY), "an archive of more files than"),
    "a pickle of empty lists": (
        lambda: archive({"a/data.pkl": b"\x80\x02" + b"]" * (5 << 20) + b"."}),
        "5242883 bytes of objects beside its tensors",
    ),
    "the same before torch 1.6": (
        lambda: b"\x80\x02X" + (4 << 20).to_bytes(4, "little") + b"a" * (4 << 20) + b"]" * 99 + b".",
        "more than 4194304 bytes of objects",
    ),
    "numpy's largest number": (
        lambda: archive(
            {
                "a/data.pkl": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x0a\x00\x00\x00"
                b"V999999999\x85R\x85R."
            }
        ),
        "a.bin",
    ),
}


@pytest.mark.long
def test_bombs_cost_little(tmp_path: Path) -> None:
    """Each is refused within two seconds of a processor, by one that may grow by 300 MB over what importing took."""
    for i, (make, _) in enumerate(BOMBS.values()):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "a.bin").write_bytes(make())
    code = f"""
import pathlib, time
from ldm.checkpoint.read import CheckpointError, read
import safetensors.torch

def now(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) >> 10

before = now("VmRSS")
for i in range({len(BOMBS)}):
    begun = time.process_time()
    try:
        read(pathlib.Path({str(tmp_path)!r}) / str(i) / "a.bin")
    except CheckpointError as error:
        print(now("VmHWM") - before, time.process_time() - begun, error)
    else:
        print(0, 0, "was read")
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    for (name, (_, words)), line in zip(BOMBS.items(), lines, strict=True):
        megabytes, seconds, text = line.split(" ", 2)
        assert words in text and "a.bin" in text, name
        assert int(megabytes) < 300 and float(seconds) <= 2, name


def test_nothing_is_imported_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_module_that_tells.py").write_text("open(__file__ + '.was_run', 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    called = b"cos\nsystem\nX\x0a\x00\x00\x00touch here\x85R."
    for i, program in enumerate((b"ca_module_that_tells\nopen\n.", called, b"cbuiltins\neval\n.")):
        (tmp_path / f"{i}.ckpt").write_bytes(b"\x80\x02" + program)
        (tmp_path / f"{i}.pt").write_bytes(archive({"a/data.pkl": b"\x80\x02" + program, "a/version": b"3\n"}))
        for ending in ("ckpt", "pt"):
            assert "holds objects that are not tensors, which could run code" in refusal(tmp_path / f"{i}.{ending}")
    assert not list(tmp_path.glob("*.was_run")) and "a_module_that_tells" not in sys.modules


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), "a is torch.sparse_coo on cpu"),
        (lambda: torch.zeros(1 << 40, device="meta"), "a is torch.strided on meta"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "a is quantized"),
        (lambda: torch.ones(9)[:1].expand(4), "a repeats or skips numbers (shape (4,), strides (0,))"),
        (lambda: torch.ones(9).as_strided((3, 3), (2, 1)), "a repeats or skips numbers (shape (3, 3), strides (2, 1))"),
        (lambda: torch.ones(4, 6)[:, ::2], "a repeats or skips numbers (shape (4, 3), strides (6, 2))"),
    ],
)
def test_tensors_that_are_not_plain(make: Callable[[], torch.Tensor], words: str, tmp_path: Path) -> None:
    torch.save({"a": make()}, tmp_path / "a.ckpt")
    assert words in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize("axes", [(1, 0, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)])
def test_dimensions_in_another_order_are_put_into_ours(axes: tuple[int, ...], tmp_path: Path) -> None:
    values = torch.arange(48.0).reshape(2, 3, 1, 8).permute(axes)
    torch.save({"a": values}, tmp_path / "a.ckpt")
    found = read(tmp_path / "a.ckpt").tensors["a"]
    assert torch.equal(found, values) and found.is_contiguous()


def test_views_that_would_be_more_than_the_file(tmp_path: Path) -> None:
    matrix = torch.ones(300, 200)
    torch.save({str(i): matrix.T for i in range(3)}, tmp_path / "a.ckpt")
    assert "tensors of 720000 bytes are views of fewer; save contiguous copies" in refusal(tmp_path / "a.ckpt")


def test_integers_are_no_weights(tmp_path: Path) -> None:
    """As 8-bit quantized files hold them: taken for weights they would draw noise."""
    model = torch.nn.Linear(2, 2)
    tensors = {"weight": torch.zeros(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"1 of no floating-point dtype \(weight torch.int8\)"):
        check_fit(model, tensors, tmp_path, "the config")


def test_what_looks_like_another_format_is_known_by_its_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.ckpt")
    torch.save({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "model.png", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert read(path).tensors["a"].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_is_finite(dtype: torch.dtype) -> None:
    values = torch.ones(3, 70).to(dtype)
    assert is_finite(values) and is_finite(values[:0]) and is_finite(values[0, 0])
    bad = (torch.nan,) if dtype == torch.float8_e4m3fn else (torch.nan, torch.inf, -torch.inf)
    for value in bad:
        broken = values.float()
        broken[1, 69] = value
        assert not is_finite(broken.to(dtype))
    assert is_finite(torch.arange(3))
