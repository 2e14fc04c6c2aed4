"""ldm/files.py is the one way to write: no file under ldm/ or scripts/ opens, saves, renames or makes one otherwise."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm.files import append_line, atomic, atomic_folder, claimed, owned, sweep, write_text

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("ldm", "scripts") for path in (ROOT / folder).rglob("*.py"))
WRITER = ROOT / "ldm" / "files.py"
SAVERS = {"save", "savefig", "save_file", "savez", "savez_compressed", "savetxt", "tofile", "imsave", "dump", "export"}
OURS = {"run.save", "folder.save"}  # which go through the writer themselves
OURS |= {"clear_refs.write_text"}  # a switch of the kernel's
OURS |= {"onnx_export.export", "torch.onnx.export"}  # into a folder that appears whole
OURS |= {"safetensors.torch.save_file"}  # a foreign file for the benchmark, in its own folder: ours have checksums
OURS |= {"os.symlink"}  # a loop and a dead end, in the folder of a case of selfcheck
FORBIDDEN = {"write_text", "write_bytes", "rename", "renames", "symlink", "link", "truncate", "makedirs", "touch"}
FORBIDDEN |= {"copy2", "copyfile", "copytree", "move", "mkstemp", "mkdtemp", "NamedTemporaryFile", "fdopen"}


def offences(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    handles = {  # names of files that the writer has opened
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name)
        and isinstance(item.context_expr, ast.Call)
        and ast.unparse(item.context_expr.func) in ("atomic", "BytesIO", "io.BytesIO")
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        said, name = ast.unparse(node), ast.unparse(node.func).rpartition(".")[2]
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        is_method = isinstance(node.func, ast.Attribute)
        if name == "open" and not said.startswith(("Image.", "zipfile.", "open(os.devnull", "os.open(os.devnull")):
            modes = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if said.startswith("os.") or any(set(mode) & set("wax+") and len(mode) < 4 for mode in modes):
                yield said
        elif ast.unparse(node.func) in OURS:
            continue
        elif name in SAVERS and (is_method or name != "save") and arguments:
            if not any(isinstance(a, ast.Name) and a.id in handles for a in arguments):
                yield said
        elif name in FORBIDDEN and (is_method or name not in ("write_text", "move", "touch", "link")):
            yield said
        elif said.startswith(("os.replace", "os.mkdir", "shutil.copy(")):
            yield said
        elif name == "mkdir" and not any(keyword.arg == "exist_ok" for keyword in node.keywords):
            yield said  # a race with another process


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_written_another_way(path: Path) -> None:
    assert path == WRITER or list(offences(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "open(p, 'w')", "open(p, mode='ab')", "p.open('x')", "p.open('r+')", "os.open(p, os.O_WRONLY)",
        "p.write_text('')", "p.write_bytes(b'')", "image.save(p)", "image.save(p, format='PNG')", "torch.save(x, p)",
        "save_file(tensors, p)", "np.save(p, x)", "figure.savefig(p)",
        "p.mkdir()", "os.makedirs(p)", "os.replace(a, b)", "a.rename(b)", "shutil.copyfile(a, b)", "p.touch()",
        "with open(p) as out:\n    image.save(out)",
    ],
)  # fmt: skip
def test_the_rule_sees(source: str) -> None:
    assert len(list(offences(source))) == 1


def test_the_rule_allows_reading_and_the_writer() -> None:
    allowed = (
        "open(p); open(p, 'rb'); p.open(); Image.open(p); a.replace('x', 'y'); p.mkdir(exist_ok=True); run.save(a)"
    )
    assert list(offences(allowed)) == []
    assert list(offences("with atomic(p) as out:\n    image.save(out, format='PNG')\n    torch.save(x, out)")) == []


def test_a_file_is_old_or_new_at_every_moment(tmp_path: Path) -> None:
    """Whatever happens between, from the first byte to the name."""
    path = tmp_path / "a"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_text() == "old"
        1 / 0  # noqa: B018
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]
    write_text(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a"]
    with pytest.raises(FileExistsError), atomic(path, exclusive=True) as file:
        file.write(b"newer")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_we_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    replace, fsync = os.replace, os.fsync

    def synced(handle: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("name"), replace(a, b)))
    write_text(tmp_path / "a", "text")
    assert calls == ["file", "name", "folder"]


def test_modes_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
        with atomic_folder(tmp_path / "b") as folder:
            write_text(folder / "c", "")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "b", "b/c")] == [0o640, 0o750, 0o640]


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a") as folder:
        write_text(folder / "b", "")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == []
    with atomic_folder(tmp_path / "a") as folder:
        write_text(folder / "b", "text")
    with pytest.raises(OSError), atomic_folder(tmp_path / "a"):  # noqa: PT011
        pass
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a" / "b").read_text() == "text"


@pytest.mark.parametrize("write", [atomic, atomic_folder])
def test_a_dead_part_of_a_name_goes_when_that_is_written(write: Callable[..., Any], tmp_path: Path) -> None:
    number = "0123456789abcdef"
    dead = tmp_path / f".o[u]t.safetensors.{number}.part"
    others = [f".out.safetensors.{number}.part", ".o[u]t.safetensors.mine.part", f".o[u]t.safetensors.x.{number}.part"]
    for name in (dead.name, *others):
        (tmp_path / name).touch()
    living = tmp_path / dead.name.replace("0", "1")
    with owned(living), write(tmp_path / "o[u]t.safetensors"):
        assert not dead.exists()
    assert sorted(os.listdir(tmp_path)) == sorted([*others, living.name, "o[u]t.safetensors"])


def test_what_a_killed_process_left_goes_and_what_a_living_one_is_at_stays(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from ldm.files import atomic, atomic_folder, claimed
from pathlib import Path
from typing import Any
folder = Path({str(tmp_path)!r})
with atomic(folder / "a") as file, atomic_folder(folder / "b") as part, claimed(folder / ".00007.claim"):
    file.write(b"half")
    file.flush()
    (part / "c").touch()
    print("ready", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    during = sorted(os.listdir(tmp_path))
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == during and len(during) == 3
    with pytest.raises(FileExistsError), claimed(tmp_path / ".00007.claim"):
        pass
    child.kill()
    child.communicate()
    with claimed(tmp_path / ".00007.claim"):
        pass
    sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.files.fcntl", None)
    old, new = (tmp_path / f".a.{digit * 16}.part" for digit in "01")
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    sweep(tmp_path)
    assert os.listdir(tmp_path) == [new.name]


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ldm.files

    lock, taken = ldm.files._lock, []

    def late(handle: int, wait: bool = False) -> bool | None:
        if not taken:
            taken.append(True)
            (tmp_path / ".a.claim").unlink()
        return lock(handle, wait)

    monkeypatch.setattr(ldm.files, "_lock", late)
    with owned(tmp_path / ".a.claim"):
        assert os.listdir(tmp_path) == [".a.claim"]


def test_lines_are_appended_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, text: (writes.append(text), write(handle, text))[1])
    for line in ("1,0.5", "2,0.25"):
        append_line(tmp_path / "loss.csv", line)
    assert writes == [b"1,0.5\n", b"2,0.25\n"] and (tmp_path / "loss.csv").read_bytes() == b"1,0.5\n2,0.25\n"
