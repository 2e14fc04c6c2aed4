"""The pictures of docs/guidance.md: the same prompts and noise with each kind of guidance, a row for each setting."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _installed  # noqa: F401
from _ending import ended

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.models.latent_diffusion import LatentDiffusion

DOCS = Path(__file__).parents[1] / "docs" / "guidance"
PROMPTS = (
    "a large shiny red sphere to the left of a small matte blue cube on a sunny day",
    "a small glossy green cone in front of a large matte white cylinder at sunset",
    "a big yellow box and a tiny purple ball on a foggy day",
    "a large shiny orange cone at night",
)
Row = tuple[str, dict[str, Any]]  # caption, options: guidance_scale, autoguide, and those of Guidance
SHEETS: dict[str, tuple[Row, ...]] = {
    "scale": (
        ("scale 1", {"guidance_scale": 1.0}),
        ("scale 3", {"guidance_scale": 3.0}),
        ("scale 9", {"guidance_scale": 9.0}),
    ),
    "rescale": (
        ("scale 9", {"guidance_scale": 9.0}),
        ("scale 9, rescale 0.7", {"guidance_scale": 9.0, "rescale": 0.7}),
        ("scale 9, rescale 1", {"guidance_scale": 9.0, "rescale": 1.0}),
    ),
    "threshold": (
        ("scale 15", {"guidance_scale": 15.0}),
        ("scale 15, dynamic threshold 0.995", {"guidance_scale": 15.0, "threshold": 0.995}),
        ("scale 15, dynamic threshold 0.9", {"guidance_scale": 15.0, "threshold": 0.9}),
    ),
    "interval": (
        ("scale 9", {"guidance_scale": 9.0}),
        ("scale 9, interval 0.5,3", {"guidance_scale": 9.0, "interval": (0.5, 3.0)}),
        ("scale 9, interval 0,0.5", {"guidance_scale": 9.0, "interval": (0.0, 0.5)}),
    ),
    "cfg-pp": (
        ("scale 3", {"guidance_scale": 3.0}),
        ("CFG++, scale 0.6", {"guidance_scale": 0.6, "cfg_pp": True}),
        ("CFG++, scale 1", {"guidance_scale": 1.0, "cfg_pp": True}),
    ),
    "pag": (
        ("scale 1", {"guidance_scale": 1.0}),
        ("scale 1, PAG 3", {"guidance_scale": 1.0, "pag": 3.0}),
        ("scale 3, PAG 3", {"guidance_scale": 3.0, "pag": 3.0}),
    ),
    "freeu": (
        ("scale 3", {"guidance_scale": 3.0}),
        ("FreeU 1.1,1.2,0.9,0.8", {"guidance_scale": 3.0, "freeu": (1.1, 1.2, 0.9, 0.8)}),
        ("FreeU 1.3,1.4,0.9,0.2", {"guidance_scale": 3.0, "freeu": (1.3, 1.4, 0.9, 0.2)}),
    ),
    "autoguidance": (
        ("scale 1", {"guidance_scale": 1.0}),
        ("scale 1, autoguidance 2", {"guidance_scale": 1.0, "worse": True, "autoguide": 2.0}),
        ("scale 3, autoguidance 2", {"guidance_scale": 3.0, "worse": True, "autoguide": 2.0}),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes", help="a shipped model or a file (default: %(default)s)")
    parser.add_argument(
        "--worse",
        metavar="FILE",
        help="autoguidance leads away from this (default: the model with noise on its weights)",
    )
    parser.add_argument("--only", nargs="+", choices=SHEETS, default=list(SHEETS), help="sheets to draw (default: all)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--outdir", type=Path, default=DOCS, help="where the sheets go (default: docs/guidance)")
    parser.add_argument("--resume", action="store_true", help="go on where the same command was stopped")
    options = parser.parse_args()
    draw(options)
    return 0


def draw(options: argparse.Namespace) -> None:
    from _device import find_device
    from _kept import kept, request

    import ldm
    from ldm.files import usable_folder
    from ldm.images import captioned, grid, to_images
    from ldm.png import write_png

    folder = usable_folder(options.outdir)
    device = find_device(options.device)
    model = ldm.load(options.model, device=device)
    worse = worsened(model) if options.worse is None else ldm.load(options.worse, device=device)
    asked = request(options, device, "model", "worse", steps=options.steps, seed=options.seed)
    with kept(folder, asked, options.resume) as drawn:
        for name in options.only:
            rows = []
            for caption, how in SHEETS[name]:  # a row may be in several sheets
                row = drawn.tensors(caption, lambda how=how: pictures(model, worse, how, options.steps, options.seed))
                rows.append(captioned(grid(to_images(row["pixels"]), len(PROMPTS)), caption))
            sheet = grid(rows, 1).point(lambda value: value & 0xFE)  # the last bit is noise that no PNG makes smaller
            write_png(sheet, folder / f"{name}.png")
            print(folder / f"{name}.png")


def pictures(
    model: LatentDiffusion, worse: LatentDiffusion, how: dict[str, Any], steps: int, seed: int
) -> dict[str, Tensor]:
    """`pixels`: (4, 3, H, W) in [-1, 1]."""
    import torch

    import ldm
    from ldm.images import to_tensor

    rest = {name: value for name, value in how.items() if name not in ("guidance_scale", "worse")}
    results = ldm.txt2img(
        model,
        PROMPTS,
        steps=steps,
        seed=seed,
        sampler="ddim",  # adds no noise: what differs is the guidance's doing
        guidance_scale=how["guidance_scale"],
        guidance=ldm.Guidance(**rest),
        autoguide=worse if how.get("worse") else None,
    )
    return {"pixels": torch.cat([to_tensor(result.image) for result in results])}


def worsened(model: LatentDiffusion, amount: float = 0.1) -> LatentDiffusion:
    """A copy with noise on its denoising network: each matrix's numbers off by `amount` of their own spread.

    It stands for what autoguidance really wants: the same network with less training, or a smaller one.
    """
    import copy

    import torch

    worse, generator = copy.deepcopy(model), torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for weight in worse.unet.parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight += amount * weight.std() * noise
    return worse


if __name__ == "__main__":
    raise SystemExit(ended(main))
