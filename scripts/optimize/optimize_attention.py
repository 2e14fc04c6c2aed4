"""The fastest safe kernel of attention for a model and a device, measured for every shape its networks ask for.

No weight is read: the shapes come from a run of the networks on tensors without numbers.

    python scripts/optimize/optimize_attention.py --model FILE --out attention.yaml
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _installed  # noqa: E402, F401
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from _device import find_device  # noqa: E402
from _ending import ended  # noqa: E402
from _tuning import Row, check_out, fastest, machine, save, table  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from ldm.checkpoint.load import outline  # noqa: E402
from ldm.models.latent_diffusion import LatentDiffusion  # noqa: E402
from ldm.modules.attention import Attention  # noqa: E402

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
DTYPES = {"full": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIMITS = {"full": 1e-5, "fp16": 2e-3, "bf16": 1e-2}  # of the relative error, where none is given
Shape = tuple[int, int, int, int, int]  # B, heads, N, M, d


@torch.inference_mode()
def shapes(model: LatentDiffusion, batch: int, height: int, width: int, states: int = 77) -> Counter[Shape]:
    """How often one step of a model on the meta device attends to what."""
    asked: Counter[Shape] = Counter()

    def listen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        asked[(*q.shape[:3], k.shape[2], q.shape[3])] += 1
        return torch.empty_like(q)

    unet: nn.Module = model.unet
    for layer in unet.modules():
        if isinstance(layer, Attention):
            layer.attention = listen
    _, h, w = model.latent_shape(height, width)
    about = model.unet
    x = torch.zeros(batch, about.in_channels, h, w, device="meta")
    context = None if about.context_dim is None else torch.zeros(batch, states, about.context_dim, device="meta")
    y = None if about.y_dim is None else torch.zeros(batch, about.y_dim, device="meta")
    y = y if about.num_classes is None else torch.zeros(batch, dtype=torch.int64, device="meta")
    about(x, torch.zeros(batch, device="meta"), context=context, y=y)
    return asked


@torch.inference_mode()
def measure(asked: Counter[Shape], device: str, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Seconds that a step spends in each kernel, and its largest relative error; "auto" is torch's own choice.

    They take turns at each shape. The first turn is not counted, and of the others the fastest: what else the machine
    did meanwhile only ever takes time.
    """
    names = ("auto", *KERNELS)
    total, worst, reasons = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), dict.fromkeys(names, "")
    for shape, count in asked.items():
        inputs = tensors(shape, device, dtype)
        exact, times = reference(*inputs), {name: list[float]() for name in names}
        for name in names * (rounds + 1):
            try:
                seconds, found = attend(name, inputs, device)
            except RuntimeError as error:
                missing = "kernel" in str(error).lower()
                reasons[name] = "torch has no such kernel for this device and dtype" if missing else str(error)[:120]
                continue
            times[name].append(seconds)
            worst[name] = max(worst[name], float((found.cpu().double() - exact).norm() / exact.norm()))
        for name in names:
            total[name] += count * min(times[name][1:], default=0.0)
    return [
        Row({"attention": name}, reason=reasons[name])
        if reasons[name]
        else Row({"attention": name}, total[name], worst[name])
        for name in names
    ]


def attend(name: str, inputs: tuple[Tensor, Tensor, Tensor], device: str) -> tuple[float, Tensor]:
    with sdpa_kernel(list(KERNELS.values()) if name == "auto" else KERNELS[name]):
        start = time.perf_counter()
        found = F.scaled_dot_product_attention(*inputs)
        if device != "cpu":
            getattr(torch, device).synchronize()
        return time.perf_counter() - start, found


def tensors(shape: Shape, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, heads, N, d), k and v (B, heads, M, d), standard normal and always the same."""
    b, heads, n, m, d = shape
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(b, heads, length, d, generator=random).to(device, dtype) for length in (n, m, m))
    return q, k, v


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v in float64, which not all devices have, on the CPU, of a picture and a head at a time."""
    rows = []
    for a, b, c in zip(*(x.cpu().flatten(0, 1) for x in (q, k, v)), strict=True):
        scores = a.double() @ b.double().T / a.shape[-1] ** 0.5  # (N, M)
        rows.append(scores.softmax(dim=-1) @ c.double())
    return torch.stack(rows).unflatten(0, q.shape[:2])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes", help="a model's name, its file, or a config's name (%(default)s)")
    parser.add_argument("--config", help="its architecture, if the file does not say")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (%(default)s)")
    parser.add_argument("--precision", choices=list(DTYPES), help="fp16 on a GPU, else full")
    parser.add_argument("--out", required=True, metavar="YAML", help="the settings; the plot goes beside them")
    parser.add_argument(
        "--batch", type=int, default=2, help="rows of a call: two a picture, with guidance (%(default)s)"
    )
    parser.add_argument("--size", type=int, metavar="PX", help="side of the pictures (the model's)")
    parser.add_argument("--rounds", type=int, default=20, help="how often each is timed (%(default)s)")
    parser.add_argument("--error", type=float, help="largest relative error (full 1e-5, fp16 2e-3, bf16 1e-2)")
    options = parser.parse_args(argv)
    try:
        return tune(options)
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        mistake = isinstance(error, ValueError)
        print(f"{'error' if mistake else 'failed'}: {error}", file=sys.stderr)
        return 2 if mistake else 1


def tune(options: argparse.Namespace) -> int:
    check_out(Path(options.out))
    for name in ("batch", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)}: give 1 or more")
    device = find_device(options.device)
    precision = options.precision or ("fp16" if device == "cuda" else "full")
    limit = LIMITS[precision] if options.error is None else options.error
    model = outline(options.model, config=options.config)
    side = model.image_size if options.size is None else options.size
    asked = shapes(model, options.batch, side, side, getattr(model.text_encoder, "context_length", 77))
    if not asked:
        raise ValueError(f"--model {options.model}: its network attends to nothing; there is nothing to choose")
    print(f"{options.model} at {side}x{side}, {precision} on {machine(device)}; a step attends")
    for (b, heads, n, m, d), count in asked.items():
        print(f"  {count:3} × ({b}, {heads}, {n}, {d}) to {m}")
    rows = measure(asked, device, DTYPES[precision], options.rounds)
    print(f"\n{table(rows, limit, 'relative error')}\n")
    best = fastest(rows, limit)
    if best is None:
        raise RuntimeError(f"no kernel stays within a relative error of {limit:g}; give a larger --error")
    where = f"{options.model} at {side}x{side}, {precision} on {machine(device)}"
    about = [
        f"{where}: {best.seconds:.4g} s of attention a step.",
        f"Its relative error is {best.error:.2g}; {limit:g} was allowed.",
    ]
    save(rows, best, limit, Path(options.out), about)
    print(f"{best.name}: {options.out}, for --settings; the plot is beside it")
    return 0


if __name__ == "__main__":
    raise SystemExit(ended(main))
