"""What the README shows works as shown."""

import re
from pathlib import Path

import pytest
from PIL import Image

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[re.search(r"(\w+)\.png", s).group(1) for s in SNIPPETS])
def test_snippet_draws(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    (picture,) = tmp_path.glob("*.png")
    assert Image.open(picture).size == (128, 128)
    low, high = zip(*Image.open(picture).getextrema(), strict=True)
    assert max(high) - min(low) > 60  # something is to be seen


def test_files_named_in_the_map_exist():
    root = Path(__file__).parents[1]
    table = README[README.index("## To change X") :]
    named = re.findall(r"`((?:ldm|scripts|configs)/[\w/.]+)`", table)
    assert len(named) > 12 and all((root / name).exists() for name in named)
