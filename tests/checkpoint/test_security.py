"""Hostile pickles, configs and bombs, under an audit hook that hears of everything that Python runs, imports or opens.

All are read in one process, into which a hook cannot be heard again: it is a child of the test.
"""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HOOK = """
import json, os, pathlib, sys
heard, folder, is_on = [], sys.argv[1], False
RUN = ("exec", "compile", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pty.spawn")

def hear(event, arguments):
    if not is_on:
        return
    if event in RUN or event.startswith(("import", "socket", "ctypes.dlopen", "shutil", "os.remove", "os.rename")):
        heard.append(f"{event} {arguments[:1]!r:.200}")
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        if not str(arguments[0]).startswith(folder):
            heard.append(f"open {arguments!r:.200}")

sys.addaudithook(hear)
"""

ARGUMENT = "touch it.was_run"
CULPRITS = (
    "os system", "posix system", "builtins eval", "builtins exec", "builtins __import__", "subprocess Popen",
    "runpy run_path", "importlib import_module", "socket create_connection", "webbrowser open", "shutil rmtree",
    "a_module_that_tells run", "torch.hub load", "torch load", "numpy load", "operator attrgetter", "functools partial",
    "builtins getattr", "pickle loads", "ctypes CDLL", "torch.serialization add_safe_globals", "types FunctionType",
)  # fmt: skip


def text(word: str) -> bytes:
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def named(culprit: str) -> bytes:
    module, name = culprit.split()
    return f"c{module}\n{name}\n".encode()


def stacked(culprit: str) -> bytes:
    module, name = culprit.split()
    return text(module) + text(name) + b"\x93"


CALL = text(ARGUMENT) + b"\x85R"
FORMS: dict[str, Callable[[str], bytes]] = {  # programs of a pickle's machine, without their end
    "GLOBAL": named,
    "REDUCE": lambda culprit: named(culprit) + CALL,
    "INST": lambda culprit: b"(" + text(ARGUMENT) + "i{}\n{}\n".format(*culprit.split()).encode(),
    "OBJ": lambda culprit: b"(" + named(culprit) + text(ARGUMENT) + b"o",
    "NEWOBJ": lambda culprit: named(culprit) + text(ARGUMENT) + b"\x85\x81",
    "STACK_GLOBAL": lambda culprit: stacked(culprit) + CALL,
    "BUILD": lambda culprit: b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + named(culprit) + b"sb",
    "BUILD with arguments": lambda culprit: named(culprit) + b")R" + text(ARGUMENT) + b"b",
    "memo": lambda culprit: named(culprit) + b"q\x050h\x05" + CALL,
    "PUT and GET": lambda culprit: named(culprit) + b"p7\n0g7\n" + CALL,
    "nested": lambda culprit: b"}" + text("state_dict") + b"}" + text("a") + named(culprit) + CALL + b"ss",
    "a call of a call": lambda culprit: named("builtins getattr") + named(culprit) + text("__call__") + b"\x86R" + CALL,
    "a persistent id": lambda culprit: named(culprit) + CALL + b"Q",
    "an extension": lambda culprit: named(culprit) + CALL + b"0\x82\x01",
}


def zipped(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, contents in records.items():
            file.writestr(name, contents)
    return buffer.getvalue()


def tarred(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(program)
            file.addfile(entry, io.BytesIO(program))
    return buffer.getvalue()


def old(program: bytes) -> bytes:
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + program


SCRIPT = {"a/code/__torch__.py": b"import os", "a/version": b"3\n", "a/constants.pkl": b"\x80\x02)."}
CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "a.pt": lambda program: zipped({"a/data.pkl": program, "a/version": b"3\n", "a/byteorder": b"little"}),
    "b.safetensors": lambda program: zipped({"a/data.pkl": program, "a/version": b"3\n"}),
    "c.jit": lambda program: zipped({"a/data.pkl": program, **SCRIPT}),
    "d.pkl": lambda program: program,
    "e.ckpt": old,
    "f.tar": tarred,
    "g.second": lambda program: zipped({"a/data.pkl": b"\x80\x02}.", "a/version": b"3\n", "b/data.pkl": program}),
}


def child(code: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_pickle_is_run(tmp_path: Path) -> None:
    (tmp_path / "a_module_that_tells.py").write_text("open(__file__ + '.was_run', 'w').close()\n")
    count = 0
    for form, make in FORMS.items():
        for protocol in range(6):
            for container, pack in CONTAINERS.items():
                culprit = CULPRITS[count % len(CULPRITS)]
                head = bytes([0x80, protocol]) if protocol > 1 else b""
                (tmp_path / f"{count:04}-{form.replace(' ', '-')}-{protocol}-{container}").write_bytes(
                    pack(head + make(culprit) + b".")
                )
                count += 1
    assert count >= 100 and set(CULPRITS) <= {CULPRITS[i % len(CULPRITS)] for i in range(count)}
    code = """
sys.path.insert(0, folder)
import torch, safetensors.torch
from ldm.checkpoint.read import CheckpointError, read
files = sorted(pathlib.Path(folder).glob("0*"))

def refused():
    for path in files:
        try:
            read(path)
        except CheckpointError as error:
            yield path.name in str(error) and "\\n" not in str(error)
        else:
            yield False

assert all(refused())  # and torch imports what it puts off
is_on = True
found = list(refused())
is_on = False
print(json.dumps({"files": len(found), "refused": sum(found), "heard": heard}))
"""
    lone = child(HOOK + code, tmp_path)
    assert lone == {"files": count, "refused": count, "heard": []}
    assert not list(tmp_path.glob("*.was_run")) and not list(ROOT.glob("*.was_run"))


TARGETS = (
    "os.system", "os.popen", "posix.system", "subprocess.Popen", "subprocess.run", "builtins.eval", "builtins.exec",
    "builtins.__import__", "__builtins__.eval", "eval", "exec", "__import__", "open", "importlib.import_module",
    "runpy.run_path", "shutil.rmtree", "socket.create_connection", "webbrowser.open", "pickle.loads", "torch.load",
    "torch.hub.load", "torch.nn.Linear", "numpy.load", "ctypes.CDLL", "code.interact", "a_module_that_tells.run",
    "a_module_that_tells", "ldm.config.load_plugin", "ldm.config.build", "ldm.config.registered", "ldm.config.register",
    "ldm.util.instantiate_from_config", "ldm.util.get_obj_from_str", "hydra.utils.instantiate", "omegaconf.OmegaConf",
    "omegaconf.OmegaConf.register_new_resolver", "ldm.checkpoint.read.read", "..os.system", "os:system", "os/system",
    "UNet.__init__", "UNet.__class__", "LatentDiffusion.__globals__", "${oc.env:HOME}", "${oc.decode:os.system}",
    "${params.unet}", "${oc.create:{target:os.system}}", "${eval:1}", "__main__.hear", "",
)  # fmt: skip


def test_no_target_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a_module_that_tells.py").write_text("open(__file__ + '.was_run', 'w').close()\n")
    assert len(set(TARGETS)) >= 40
    code = """
sys.path.insert(0, folder)
import functools, typing
import ldm.checkpoint.load
typing.get_type_hints = functools.cache(typing.get_type_hints)  # which evaluates our own annotations, now once
from ldm.config import ConfigError, build, parse_config
targets = json.loads(sys.argv[2])
inner = "target: LatentDiffusion\\nparams:\\n  unet: {target: %s, params: {args: touch it.was_run}}\\n"
forms = ("target: %s\\nparams: {command: touch it.was_run}\\n", inner, "target: [%s]\\n", "params: {target: %s}\\n")

def refused():
    for target in targets:
        for form in forms:
            try:
                build(parse_config(form % json.dumps(target)))
            except ConfigError:
                yield True
            else:
                yield False

assert all(refused())
is_on = True
found = list(refused())
is_on = False
print(json.dumps({"refused": sum(found), "heard": heard}))
"""
    assert child(HOOK + code, tmp_path, json.dumps(TARGETS)) == {"refused": 4 * len(TARGETS), "heard": []}
    assert not list(tmp_path.glob("*.was_run")) and not list(ROOT.glob("*.was_run"))


def bombs(folder: Path) -> None:
    """Files of a few kilobytes that ask for gigabytes."""
    header = b"\0\0\xea\x60\0\0\xea\x60\x08\2\0\0\0"  # 60000 x 60000
    chunk = (13).to_bytes(4, "big") + b"IHDR" + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big")
    words = b"ldm\0\0" + zlib.compress(bytes(1 << 30), 9)
    texts = len(words).to_bytes(4, "big") + b"zTXt" + words + zlib.crc32(b"zTXt" + words).to_bytes(4, "big")
    small = chunk.replace(header[:8], (8).to_bytes(4, "big") * 2)
    small = small[:-4] + zlib.crc32(small[4:-4]).to_bytes(4, "big")
    (folder / "pixels.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + bytes(100))
    (folder / "text.png").write_bytes(b"\x89PNG\r\n\x1a\n" + small + texts + bytes(100))
    (folder / "aliases.yaml").write_text(
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12))
    )
    (folder / "deep.yaml").write_text("a: " + "{a: " * 5000)
    (folder / "long.yaml").write_text("a: b\n" * 400_000)
    claim = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x03tQ"
    claim = b"ctorch._utils\n_rebuild_tensor_v2\n" + claim + b"K\0\x8a\x06\0\0\0\0\0\x01\x85K\0\x85\x89}tR"
    for name, program in {
        "stride": b"\x80\x02}" + text("a") + claim + b"s.",
        "cyclic": b"\x80\x02}q\0" + text("state_dict") + b"h\0s.",
    }.items():
        records = {"a/data.pkl": program, "a/data/0": bytes(12), "a/byteorder": b"little", "a/version": b"3\n"}
        (folder / f"{name}.ckpt").write_bytes(zipped(records))
    with zipfile.ZipFile(folder / "deflate.ckpt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes(1 << 29))
    flood = (
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(140_000)) + b"}"
    )
    (folder / "flood.safetensors").write_bytes(len(flood).to_bytes(8, "little") + flood)


@pytest.mark.long
def test_bombs_are_refused_in_bounded_memory_and_time(tmp_path: Path) -> None:
    bombs(tmp_path)
    code = """
import json, pathlib, sys, time
import omegaconf, safetensors.torch
from ldm.checkpoint.read import read
from ldm.config import load_config, parse_config
from ldm.images import load_image, open_image
from ldm.png import read_request
parse_config("a: 1")

def now(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) >> 10

readers = {".png": (load_image, read_request), ".yaml": (load_config,)}
found, before = {}, now("VmRSS")
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    for reader in readers.get(path.suffix, (read,)):
        begun = time.process_time()
        try:
            reader(path)
        except ValueError as error:
            seconds = time.process_time() - begun
            found[f"{path.name} {reader.__name__}"] = [path.name in str(error), now("VmHWM") - before, seconds]
        else:
            found[path.name] = [False, 0, 0]
print(json.dumps(found))
"""
    found = child(code, tmp_path)
    assert len(found) == 11
    for name, (is_named, megabytes, seconds) in found.items():
        assert is_named and megabytes <= 300 and seconds <= 2, name


@pytest.mark.long
def test_no_command_opens_a_socket(tmp_path: Path) -> None:
    """Of each kind: what draws, from nothing or a picture, what reads and writes weights, what trains, what judges."""
    code = """
sys.path.insert(0, "scripts")
import contextlib, runpy
from PIL import Image
from _selfcheck.case import Case
from _selfcheck.runner import Bench, call
scripts = os.path.abspath("scripts")
bench = Bench(pathlib.Path(folder))
os.chdir(folder)
os.mkdir("pictures")
for name in ("a.png", "pictures/a.png"):
    Image.new("RGB", (32, 32)).save(name)
Image.new("L", (32, 32), 255).save("mask.png")
Image.new("RGB", (8, 8)).save("small.png")
recipe = {"target": "AutoencoderExperiment", "params": {
    "crop": 16,
    "model": {"target": "AutoencoderKL", "params": {
        "block_out_channels": [8, 8], "layers_per_block": 1, "mid_attention": False, "norm_num_groups": 4}},
    "data": {"target": "ImageFolder", "params": {"path": "pictures", "size": 16}},
    "recipe": {"target": "Recipe", "params": {"steps": 2, "batch_size": 1, "learning_rate": 1e-3}},
}}
pathlib.Path("recipe.yaml").write_text(json.dumps(recipe))
asked = ["--prompt", "a cube"]
argv = {
    "txt2img": asked,
    "img2img": [*asked, "--init-img", "a.png"],
    "inpaint": [*asked, "--init-img", "a.png", "--mask", "mask.png"],
    "upscale": [*asked, "--init-img", "small.png", "--model", "scenes-x4"],
    "convert": [str(bench.model), "b.safetensors"],
    "inspect_checkpoint": [str(bench.model)],
}

def run(script, *words):
    sys.argv = [script, *words, "--device", "cpu"]
    try:
        runpy.run_path(f"{scripts}/{script}.py", run_name="__main__")
    except SystemExit as error:
        return error.code

is_on = True
with contextlib.redirect_stdout(sys.stderr):
    done = {name: call(Case("", words, "", command=name), bench.model) for name, words in argv.items()}
    done["train"] = run("train_autoencoder", "--config", "recipe.yaml", "--outdir", "run")
    done["evaluate"] = run("evaluate_scenes", "--prompts", "2", "--steps", "1")
is_on = False
print(json.dumps([done, [line for line in heard if line.startswith(("socket", "subprocess", "os.system"))]]))
"""
    done, told = child(HOOK + code, tmp_path)
    assert len(done) == 8 and not any(done.values()), done
    assert set(told) <= {"subprocess.Popen ('git',)"}  # a training notes the commit that it is of
