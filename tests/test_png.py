from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
from PIL import Image

from ldm.files import owned
from ldm.png import Folder, parameters_text, read_request, text_chunks, write_png

PICTURE = Image.new("RGB", (8, 8), "teal")


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """A reader by the rules of the `parameters` text (last line of three or more `Key: value` pairs)."""
    *lines, last = text.split("\n")
    pairs = re.findall(r'\s*([\w ]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3
    split = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    negative = "\n".join(lines[split:]).removeprefix("Negative prompt: ")
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    return "\n".join(lines[:split]), negative, values


@pytest.mark.parametrize("prompt", ["a red cube", "two\nlines: one, two", "日本 — 🎨", ""])
@pytest.mark.parametrize("negative", ["", "blurry, dark: very\nugly"])
def test_parameters_survive_another_programs_reader(tmp_path: Path, prompt: str, negative: str) -> None:
    settings = {"Steps": 30, "Sampler": "DDIM", "CFG scale": 7.0, "Model": 'a, "b": c', "VAE": None, "Version": "ldm 1"}
    write_png(PICTURE, tmp_path / "a.png", text_chunks(parameters_text(prompt, negative, settings), {"prompt": prompt}))
    with Image.open(tmp_path / "a.png") as image:
        read = parse(image.text["parameters"])
    assert read[:2] == (prompt, negative)
    assert list(read[2].items()) == [
        ("Steps", "30"), ("Sampler", "DDIM"), ("CFG scale", "7"), ("Model", 'a, "b": c'), ("Version", "ldm 1"),
    ]  # fmt: skip
    assert read_request(tmp_path / "a.png") == {"prompt": prompt}


def test_a_picture_without_a_request_is_named(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    PICTURE.save(tmp_path / "a.jpg")
    for name in ("a.png", "a.jpg"):
        with pytest.raises(ValueError, match=rf"{name}: carries no `ldm` chunk"):
            read_request(tmp_path / name)
    write_png(PICTURE, tmp_path / "b.png", text_chunks("", []))
    with pytest.raises(ValueError, match=r"b\.png: its `ldm` chunk is not a JSON object"):
        read_request(tmp_path / "b.png")


def test_names_count_on_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "00004-99.png").write_bytes(b"mine")
    (tmp_path / "grid-00000.png").write_bytes(b"mine")
    folder = Folder(tmp_path / ".")
    assert folder.save(PICTURE, "{index:05}-7").name == "00005-7.png"
    assert folder.save(PICTURE, "{index:05}-7").name == "00006-7.png"
    assert folder.save(PICTURE, "grid-{index:05}").name == "grid-00001.png"
    assert (tmp_path / "00004-99.png").read_bytes() == (tmp_path / "grid-00000.png").read_bytes() == b"mine"


def test_an_index_is_taken_whatever_its_seed_or_claim(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (tmp_path / "00000-5.png").touch()
    (tmp_path / ".00001.claim").touch()
    assert folder.save(PICTURE, "{index:05}-6").name == "00002-6.png"


def test_threads_sharing_a_folder_lose_nothing(tmp_path: Path) -> None:
    def work(seed: int) -> None:
        folder = Folder(tmp_path)
        for _ in range(8):
            folder.save(PICTURE, f"{{index:05}}-{seed}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 32 and len({name[:5] for name in names}) == 32


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        folder.save(PICTURE, "{index:05}-1")
    assert os.listdir(tmp_path) == []


def test_leftovers_of_killed_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    part = f".00003-1.png.{'0123456789abcdef'}.part"
    for name in (".00003.claim", ".grid-00001.claim", ".names.claim", part, ".download.part", ".my.claim"):
        (tmp_path / name).touch()
    with owned(tmp_path / ".00004.claim"):  # by somebody who lives
        folder = Folder(tmp_path)
        assert sorted(os.listdir(tmp_path)) == [".00004.claim", ".download.part", ".my.claim"]
        assert folder.save(PICTURE, "{index:05}-1").name == "00005-1.png"


def test_names_that_a_job_took_are_left_to_it(tmp_path: Path) -> None:
    folder, other = Folder(tmp_path), Folder(tmp_path)
    other.save(PICTURE, "{index:05}-1")
    job = folder.reserve(lambda pictures, grids: {"first": pictures, "next": {"": pictures + 3, "grid-": grids + 1}})
    assert job.name == "job-00000.json" and json.loads(job.read_text())["first"] == 1
    assert other.save(PICTURE, "{index:05}-1").name == "00004-1.png"
    assert other.save(PICTURE, "grid-{index:05}").name == "grid-00001.png"
    assert other.reserve(lambda pictures, grids: {"at": [pictures, grids], "next": {}}).name == "job-00001.json"
    assert json.loads((tmp_path / "job-00001.json").read_text())["at"] == [5, 2]


def test_a_name_that_is_taken_after_all_is_not_overwritten(tmp_path: Path) -> None:
    write_png(PICTURE, tmp_path / "a.png", exclusive=True)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(FileExistsError):
        write_png(Image.new("RGB", (4, 4)), tmp_path / "a.png", exclusive=True)
    assert (tmp_path / "a.png").read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_a_folder_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="cannot be written there"):
            Folder(path)
