"""The short form of scripts/selfcheck.py, and what it found, as regression cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldm.config import ConfigError, load_config
from ldm.files import regular_size
from ldm.images import load_image


def test_there_are_enough_cases() -> None:
    from _selfcheck import checkpoints, configs, options, paths, pictures, prompt_files, prompts

    least = {checkpoints: 80, configs: 60, pictures: 70, options: 90, prompts: 40, paths: 30, prompt_files: 30}
    for table, count in least.items():
        cases = list(table.cases())
        assert len(cases) >= count and len({case.name for case in cases}) == len(cases), table.NAME


def test_what_may_have_no_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="a pipe or a device"):
            regular_size(path)
        with pytest.raises(ConfigError, match=path.name):
            load_config(path)
        with pytest.raises(ValueError, match=path.name):
            load_image(path)


def test_lines_of_a_prompt_file_end_where_an_editor_ends_them(tmp_path: Path) -> None:
    from _cli import _read_prompts

    (tmp_path / "a.txt").write_bytes("a\u2028b\x85c\r\nd\re\n\0\n".encode())
    assert _read_prompts(str(tmp_path / "a.txt")) == ["a\u2028b\x85c", "d", "e"]
