"""What a script says where `ldm` is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(path for path in (Path(__file__).parents[2] / "scripts").glob("*.py") if path.name[0] != "_")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_without_ldm_says_how_to_install_it(script, tmp_path):
    bare = [sys.executable, "-S", "-E", str(script), "--help"]  # neither site-packages nor PYTHONPATH
    ran = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True)
    (line,) = ran.stderr.splitlines()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert line == f"error: ldm is not installed; run pip install -e '{script.parents[1]}'"
