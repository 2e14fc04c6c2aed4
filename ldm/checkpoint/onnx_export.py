"""A model -> a folder of ONNX graphs, one for each network, and the config that says what they are parts of.

Batch, sizes and the number of the text's states are free in every graph. Weights are beside it, in NAME.onnx.data.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.checkpoint.onnx_folder import CONFIG, CPU, DECODER, ENCODER, TEXT_ENCODER, UNET, Session
from ldm.config_file import yaml_text
from ldm.files import write_text
from ldm.models.autoencoder import Autoencoder, AutoencoderKL, Gaussian, IdentityAutoencoder
from ldm.models.encoders import NoText, TextEncoder
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ChunkedTextEncoder

LOOKS = ("image_encoder", "image_augmentation", "depth_estimator")  # parts that look at pictures: not exported


class Graph(NamedTuple):
    """What becomes one file: a network, and how it is called."""

    file: str
    network: nn.Module
    inputs: dict[str, Tensor]
    outputs: Sequence[str]
    free: dict[str, dict[int, str]]  # the dimensions of each input that may be any number, and their names

    def answer(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What torch says to them."""
        with torch.inference_mode():
            found = self.network(*inputs.values())
        return [found] if isinstance(found, Tensor) else list(found)


class Row(NamedTuple):
    """One graph as onnxruntime computes it, beside torch, for another batch and size than those it was traced with."""

    file: str
    nodes: int
    bytes: int  # of graph and weights
    maximum: float  # of the absolute differences
    relative: float  # |onnxruntime - torch| / |torch|


class _Called(nn.Module):
    """A network, and which of its methods is meant."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


# --- what is exported --------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """Of the inputs; none of them must be 1 where a graph is traced, and none equal to another."""

    batch: int
    height: int  # of the latent
    width: int
    states: int  # of text


TRACED, COMPARED = Sizes(2, 8, 12, 77), Sizes(1, 16, 8, 154)


@torch.no_grad()
def graphs(model: LatentDiffusion, sizes: Sizes) -> Iterator[Graph]:
    """All of a model, with random inputs of these sizes."""
    batch, height, width, _ = sizes
    random = torch.Generator().manual_seed(batch)
    autoencoder, encoder = model.autoencoder, model.text_encoder
    if not isinstance(encoder, NoText):
        yield _text_graph(encoder, batch)
    yield _unet_graph(model, sizes, random)
    if isinstance(autoencoder, IdentityAutoencoder):
        return
    factor, free = autoencoder.downsample_factor, {0: "batch", 2: "height", 3: "width"}
    image = torch.randn(batch, 3, height * factor, width * factor, generator=random).clamp(-1, 1)
    z = torch.randn(batch, autoencoder.latent_channels, height, width, generator=random)
    outputs = ("mean", "logvar") if isinstance(autoencoder, AutoencoderKL) else ("z",)
    yield Graph(
        ENCODER, _Called(autoencoder, partial(_encode, autoencoder)), {"image": image}, outputs, {"image": free}
    )
    yield Graph(DECODER, _Called(autoencoder, autoencoder.decode), {"z": z}, ("image",), {"z": free})


def _encode(autoencoder: Autoencoder, image: Tensor) -> tuple[Tensor, ...]:
    z = autoencoder.encode(image)
    return (z.mean, z.logvar) if isinstance(z, Gaussian) else (z,)


def _text_graph(encoder: TextEncoder, batch: int) -> Graph:
    tokens = encoder.tokenize(["a red cube", *["7"] * (batch - 1)] if _reads(encoder) else ["1"] * batch)
    inputs, free = {"tokens": tokens}, {"tokens": {0: "batch"}}
    if isinstance(encoder, ChunkedTextEncoder):
        inputs["weights"] = 1 + 0.1 * torch.arange(batch * tokens.shape[-1]).reshape(batch, -1) % 7  # (B, L)
        free["weights"] = {0: "batch"}
    states, pooled = encoder(*inputs.values())
    outputs = [name for name, value in (("states", states), ("pooled", pooled)) if value is not None]
    return Graph(TEXT_ENCODER, _Called(encoder, partial(_read, encoder)), inputs, outputs, free)


def _read(encoder: TextEncoder, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(value for value in encoder(*inputs) if value is not None)


def _reads(encoder: TextEncoder) -> bool:
    """Words, and not the numbers of classes."""
    return isinstance(encoder, ChunkedTextEncoder) or hasattr(encoder, "wordpiece")


def _unet_graph(model: LatentDiffusion, sizes: Sizes, random: torch.Generator) -> Graph:
    unet: Any = model.unet
    batch, height, width, states = sizes
    inputs = {"x": torch.randn(batch, unet.in_channels, height, width, generator=random)}
    inputs["t"] = torch.linspace(1, 900, batch)
    free = {"x": {0: "batch", 2: "height", 3: "width"}, "t": {0: "batch"}}
    if unet.context_dim is not None:
        inputs["context"] = torch.randn(batch, states, unet.context_dim, generator=random)
        free["context"] = {0: "batch", 1: "states"}
    if unet.num_classes is not None or unet.y_dim is not None:
        vectors = unet.y_dim is not None
        inputs["y"] = torch.randn(batch, unet.y_dim, generator=random) if vectors else torch.arange(batch)
        free["y"] = {0: "batch"}
    return Graph(UNET, _Called(unet, partial(_by_name, unet, tuple(inputs))), inputs, ("prediction",), free)


def _by_name(unet: nn.Module, names: Sequence[str], *inputs: Tensor) -> Tensor:
    """Without what this network is not told."""
    prediction: Tensor = unet(**dict(zip(names, inputs, strict=True)))
    return prediction


# --- writing and checking ----------------------------------------------------------------------------------------


def export(model: LatentDiffusion, tree: Mapping[str, Any], folder: Path) -> Iterator[Row]:
    """Write all files into a folder that is there; each row as soon as its graph is written and was compared.

    The model is in float32 and on the CPU. tree: the config that it was built from.
    """
    kept = {name: value for name, value in tree["params"].items() if name not in LOOKS}
    kept["parameterization"] = model.parameterization
    write_text(folder / CONFIG, yaml_text({**tree, "params": kept}))
    others = {graph.file: graph.inputs for graph in graphs(model, COMPARED)}
    for graph in graphs(model, TRACED):
        write(graph, folder)
        yield compare(graph, others[graph.file], folder)
        gc.collect()  # a graph and its weights stand in cycles


def write(graph: Graph, folder: Path) -> None:
    """By torch.export: what is traced is the very computation, for all sizes at once."""
    shapes = tuple(dict(graph.free[name]) for name in graph.inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that two inputs share the name of their batch
        torch.onnx.export(
            graph.network,
            tuple(graph.inputs.values()),
            folder / graph.file,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=(shapes,),
            dynamo=True,
            external_data=True,
            verbose=False,
        )


def compare(graph: Graph, inputs: Mapping[str, Tensor], folder: Path) -> Row:
    session = Session(folder / graph.file, (CPU,))
    found = session(**inputs)
    nodes = _nodes(folder / graph.file)
    pairs = list(zip(found, graph.answer(inputs), strict=True))
    maximum = max(float((ours - wanted).abs().max()) for ours, wanted in pairs)
    relative = max(float((ours - wanted).norm() / wanted.norm()) for ours, wanted in pairs)
    size = sum(file.stat().st_size for file in folder.glob(f"{graph.file}*"))
    return Row(graph.file, nodes, size, maximum, relative)


def _nodes(file: Path) -> int:
    import onnx

    return len(onnx.load(file, load_external_data=False).graph.node)
