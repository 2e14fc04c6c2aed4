"""The row of new processes: how long until something is there."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _bench.files import reading
from _bench.harness import Bench, Line, row
from _bench.weights import PROMPT, checkpoint

SCRIPTS = Path(__file__).parents[1]
PATIENCE = 600  # seconds after which a process is no candidate any more

OUR_EMBEDDING = """
import sys, torch, ldm
model = ldm.load(sys.argv[1], dtype=getattr(torch, sys.argv[2]), **{options})
with torch.inference_mode():
    print(float(model.condition([sys.argv[3]]).context.double().norm()))
"""
THEIR_EMBEDDING = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_single_file(
    sys.argv[1], config=sys.argv[4], torch_dtype=getattr(torch, sys.argv[2]), local_files_only=True
)
with torch.inference_mode():
    print(float(pipe.encode_prompt(sys.argv[3], "cpu", 1, False)[0].double().norm()))
"""
THEIR_SCENES = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import diffusers
from PIL import Image
from _bench.pipelines import ScenesInDiffusers
with torch.inference_mode():
    picture = ScenesInDiffusers().draw(sys.argv[3], 1, int(sys.argv[4]))[0]
Image.fromarray(picture.byte().numpy()).save(sys.argv[2])
"""


@row("cold-start", "a new process: SD 1, fp16 file, to the first text embedding; the shipped model, to a PNG")
def cold_start(bench: Bench) -> Iterator[Line]:
    """The file is in the system's cache for both. Each side is given its own file's configs, so that none is asked."""
    file = checkpoint(bench, "sd-v1")
    for dtype, must in (("float16", ">= 2.0"), ("float32", "")):
        source = OUR_EMBEDDING.format(options={"config": file.tree} if bench.tiny else {})
        told = [str(file.file), dtype, PROMPT, str(file.configs)]
        seconds, said = processes({"ours": ["-c", source, *told], "theirs": ["-c", THEIR_EMBEDDING, *told]}, bench)
        off = abs(float(said["ours"]) / float(said["theirs"]) - 1)
        what = f"{dtype}, against from_single_file"
        yield Line(what, seconds["ours"], seconds["theirs"], must, reading(file.file), off)
    with tempfile.TemporaryDirectory() as folder:
        steps = "2" if bench.tiny else "30"
        script = [str(SCRIPTS / "txt2img.py"), "--prompt", PROMPT, "--sampler", "ddim"]
        script += ["--steps", steps, "--outdir", folder, "--precision", "full"]  # as theirs
        theirs = ["-c", THEIR_SCENES, str(SCRIPTS), f"{folder}/theirs.png", PROMPT, steps]
        seconds, _ = processes({"ours": [*script, "--seed", "5", "--device", "cpu"], "theirs": theirs}, bench)
    yield Line("scenes to PNG, against the same in diffusers' classes", seconds["ours"], seconds["theirs"])


def processes(sides: dict[str, list[str]], bench: Bench) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each side's command, in turns after a first one of each; and the last line it printed."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    said = {}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), *sys.path[1:]])}  # this very ldm
    for _ in range(1 if bench.tiny else bench.rounds + 1):
        for name, command in sides.items():
            start = time.perf_counter()
            run = subprocess.run(
                [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=PATIENCE
            )
            taken[name].append(time.perf_counter() - start)
            if run.returncode:
                raise RuntimeError(f"{name}: {' '.join(run.stderr.split())[-250:]}")
            said[name] = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else ""
    return {name: statistics.median(times[1:] or times) for name, times in taken.items()}, said
