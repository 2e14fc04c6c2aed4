"""What a script says where `ldm`, or a package of its extras, is not installed."""

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


FOLDER = SCRIPTS[0].parent


def run_with_it(code):
    start = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import _installed; "
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)


def test_a_package_of_an_extra_that_is_missing_is_a_sentence():
    ran = run_with_it("sys.modules['diffusers'] = None; import diffusers.models")
    assert ran.returncode == 1
    assert ran.stderr == f"failed: diffusers is not installed; run pip install -e '{FOLDER.parent}[test]'\n"


def test_another_failure_keeps_its_traceback():
    ran = run_with_it("import no_such_module")
    assert ran.returncode == 1 and "Traceback" in ran.stderr and "no_such_module" in ran.stderr
