"""A folder of ONNX graphs, as `onnx_export` writes it -> a model whose networks are sessions of onnxruntime.

Samplers, guidance, masks, tiles and prompts are those of any model: only what computes a network is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import CheckpointError
from ldm.config import build, load_config
from ldm.models.autoencoder import Autoencoder, Gaussian, IdentityAutoencoder
from ldm.models.encoders import NoText, TextEncoder, TextFeatures
from ldm.models.latent_diffusion import LatentDiffusion

CONFIG = "config.yaml"
TEXT_ENCODER, UNET, ENCODER, DECODER = "text_encoder.onnx", "unet.onnx", "encoder.onnx", "decoder.onnx"
CPU = "CPUExecutionProvider"
Provider = str | tuple[str, dict[str, Any]]  # a name, or with options


class Session:
    """A graph that is ready to run: float32 and int64 tensors on the CPU in, by name, and out, in their order."""

    def __init__(self, file: Path, providers: Sequence[Provider]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=list(providers))
        except Exception as error:  # onnxruntime's own have no common class
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{file}: onnxruntime cannot use it ({reason}); export the model again") from error

    def __call__(self, **inputs: Tensor | None) -> list[Tensor]:
        given = {name: value.detach().cpu().numpy() for name, value in inputs.items() if value is not None}
        return [torch.from_numpy(value) for value in self.session.run(None, given)]


class OnnxUNet(nn.Module):
    """With the signature of `UNet.forward`. It has no layers, so nothing can be edited, trained or compiled in it."""

    def __init__(self, session: Session, like: nn.Module) -> None:
        super().__init__()
        self.session = session
        self.in_channels, self.context_dim = getattr(like, "in_channels", None), getattr(like, "context_dim", None)
        self.placeholder = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells `LatentDiffusion` device, dtype

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        (prediction,) = self.session(x=x, t=t, context=context, y=y)
        return prediction


class OnnxAutoencoder(Autoencoder):
    """With the scale and shift of the latents inside of its graphs."""

    def __init__(self, encoder: Session, decoder: Session, like: Autoencoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent_channels, self.downsample_factor = like.latent_channels, like.downsample_factor
        self.scaling_factor, self.shift_factor = like.scaling_factor, like.shift_factor

    def encode(self, image: Tensor) -> Gaussian | Tensor:
        outputs = self.encoder(image=image)  # mean and log variance, or the latents themselves
        return Gaussian(*outputs) if len(outputs) == 2 else outputs[0]

    def decode(self, z: Tensor) -> Tensor:
        (image,) = self.decoder(z=z)
        return image


class OnnxReader:
    """Takes the place of the `forward` of an encoder of prompts, which goes on making tokens of them."""

    def __init__(self, session: Session) -> None:
        self.session, self.takes = session, {value.name for value in session.session.get_inputs()}

    def __call__(self, tokens: Tensor, weights: Tensor | None = None, clip_skip: int = 1) -> TextFeatures:
        if clip_skip != 1:
            raise ValueError(f"clip_skip is {clip_skip}, but ONNX files hold the family's own states; leave it out")
        if "weights" in self.takes and weights is None:
            weights = torch.ones(len(tokens), tokens.shape[-1])
        states, *pooled = self.session(tokens=tokens, weights=weights)
        return TextFeatures(states, pooled[0] if pooled else None)


def load_onnx(folder: str | Path, providers: Sequence[Provider] = (CPU,)) -> LatentDiffusion:
    """The model of an exported folder, in float32 and, for torch, on the CPU.

    providers: of onnxruntime, in the order of preference, and perhaps with options.
    Raises CheckpointError for a folder that is none, ValueError where onnxruntime or a provider is not installed.
    """
    folder = Path(folder)
    check_providers(providers)
    model = outline_onnx(folder)
    unet = OnnxUNet(Session(folder / UNET, providers), model.unet)
    model.unet = model.denoiser.unet = unet
    if not isinstance(model.autoencoder, IdentityAutoencoder):
        encoder, decoder = (Session(folder / name, providers) for name in (ENCODER, DECODER))
        model.autoencoder = OnnxAutoencoder(encoder, decoder, model.autoencoder)
    if not isinstance(model.text_encoder, NoText):
        read_by(model.text_encoder, Session(folder / TEXT_ENCODER, providers))
    return model.eval()


def outline_onnx(folder: str | Path) -> LatentDiffusion:
    """The model of an exported folder on the meta device, without weights. CheckpointError for what is none."""
    file = Path(folder) / CONFIG
    check_folder(Path(folder))
    with on_meta():
        model = build(load_config(file), str(file), expected=LatentDiffusion)
    assert isinstance(model, LatentDiffusion)
    return model


def read_by(encoder: TextEncoder, session: Session) -> None:
    encoder.forward = OnnxReader(session)  # type: ignore[method-assign]


def check_folder(folder: Path) -> None:
    if not (folder / CONFIG).is_file() or not (folder / UNET).is_file():
        raise CheckpointError(
            f"{folder}: not a folder of ONNX files ({CONFIG} and {UNET} are missing); "
            "make one with scripts/export_onnx.py MODEL --out FOLDER"
        )


def has_provider(providers: Sequence[Provider]) -> bool:
    """Whether onnxruntime, and the one that is wanted most, are there."""
    try:
        check_providers(providers)
    except ValueError:
        return False
    return True


def check_providers(providers: Sequence[Provider]) -> None:
    """ValueError where onnxruntime, or the one that is wanted most, is not there."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            "drawing with ONNX files needs onnxruntime; pip install onnxruntime, or onnxruntime-gpu for a GPU"
        ) from error
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    known = onnxruntime.get_available_providers()
    if first not in known:
        raise ValueError(f"onnxruntime has no {first} here, only {', '.join(known)}; pip install one that has it")
