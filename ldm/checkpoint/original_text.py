"""What conditions an original model (CompVis `cond_stage_config`, sgm `conditioner_config`) -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Node = dict[str, Any]

CLIP_L = "openai/clip-vit-large-patch14"
PROJECTIONS = {"ViT-L-14": 768, "ViT-H-14": 1024, "ViT-bigG-14": 1280}  # widths of the pooled vectors
RUN = {"device", "freeze", "version", "max_length"}  # how to run a tower, and where its weights once came from
NUMBERS = {
    "original_size_as_tuple": ("original_height", "original_width"),
    "crop_coords_top_left": ("crop_top", "crop_left"),
    "target_size_as_tuple": ("target_height", "target_width"),
    "aesthetic_score": ("aesthetic_score",),
}


def conditioning(stage: Mapping[str, Any] | str) -> Node:
    """A `cond_stage_config` -> our `text_encoder` and `guidance_scale`."""
    if stage == "__is_unconditional__":
        return {"text_encoder": {"target": "NoText"}, "guidance_scale": 1.0}
    if isinstance(stage, str):
        raise ValueError(f"cond_stage_config {stage!r} is not supported: only __is_unconditional__ or a node is")
    if class_name(stage) == "ClassEmbedder":
        return {"text_encoder": class_embedder(stage.get("params") or {}), "guidance_scale": 3.0}
    if class_name(stage) == "BERTEmbedder":
        return {"text_encoder": bert(stage.get("params") or {}), "guidance_scale": 5.0}
    encoder = tower(stage)
    is_clip_l = encoder["params"]["name"].startswith("ViT-L-14")
    return {"text_encoder": encoder, "guidance_scale": 7.5 if is_clip_l else 9.0}


def conditioner(config: Mapping[str, Any]) -> Node:
    """sgm's GeneralConditioner -> our `text_encoder`, `guidance_scale` and, for SDXL, what it is told of a picture."""
    embedders = config["params"]["emb_models"]
    sizes = [e for e in embedders if class_name(e) == "ConcatTimestepEmbedderND"]
    towers = [e for e in embedders if class_name(e) != "ConcatTimestepEmbedderND"]
    if [*towers, *sizes] != list(embedders) or len(towers) not in (1, 2):
        raise ValueError("emb_models must be one or two text towers, then the numbers that SDXL is told")
    if not sizes and len(towers) == 1:
        return conditioning(towers[0])
    nodes = [tower(each) for each in towers]
    out: Node = {"text_encoder": nodes[0], "guidance_scale": 5.0}
    if len(nodes) == 2:
        out["text_encoder"] = {"target": "TwoTowers", "params": {"first": nodes[0], "second": nodes[1]}}
        out["zero_unconditional"] = True  # how the base model was trained; the refiner was not
    if sizes:
        widths = {e["params"]["outdim"] for e in sizes}
        unknown = sorted({str(e["input_key"]) for e in sizes} - set(NUMBERS))
        if unknown or len(widths) > 1:
            known = ", ".join(NUMBERS)
            raise ValueError(f"emb_models {unknown}, outdim {sorted(widths)}: known are {known}, of one outdim")
        numbers = [number for e in sizes for number in NUMBERS[e["input_key"]]]
        out["framing_embedding"] = {"target": "FramingEmbedding", "params": {"numbers": numbers, "dim": widths.pop()}}
    return out


def tower(node: Mapping[str, Any]) -> Node:
    """One text tower; ValueError for what is none, or says of its states what no published model says."""
    name, given = class_name(node), dict(node.get("params") or {})
    if given.get("max_length", 77) != 77:
        raise ValueError(f"max_length {given['max_length']} of {name} is not supported: the towers read 77 tokens")
    if name == "FrozenCLIPEmbedder":
        params = _hugging_face_tower(given)
    elif name in ("FrozenOpenCLIPEmbedder", "FrozenOpenCLIPEmbedder2"):
        params = _open_clip_tower(given, second=name.endswith("2"))
    else:
        raise ValueError(f"the text encoder {name} is not supported")
    return {"target": "OpenCLIPTextEncoder", "params": params}


def _hugging_face_tower(given: Mapping[str, Any]) -> Node:
    refuse_unknown("FrozenCLIPEmbedder", given, RUN | {"layer", "layer_idx", "always_return_pooled"})
    version, layer, index = given.get("version", CLIP_L), given.get("layer", "last"), given.get("layer_idx")
    states = {("last", None): ("last", True), ("hidden", 11): ("penultimate", False)}.get((layer, index))
    if version != CLIP_L or states is None or given.get("always_return_pooled", False):
        raise ValueError(f"FrozenCLIPEmbedder {version!r}, layer {layer!r}, layer_idx {index!r}: no published model's")
    return {"name": "ViT-L-14-quickgelu", "layer": states[0], "final_norm": states[1], "pad_id": 49407}


def _open_clip_tower(given: Mapping[str, Any], second: bool) -> Node:
    """second: FrozenOpenCLIPEmbedder2, whose states are normed only if `legacy`."""
    name = "FrozenOpenCLIPEmbedder2" if second else "FrozenOpenCLIPEmbedder"
    refuse_unknown(name, given, RUN | {"arch", "layer"} | ({"always_return_pooled", "legacy"} if second else set()))
    arch = given.get("arch", "ViT-H-14")
    if arch not in PROJECTIONS:
        raise ValueError(f"arch {arch!r} of {name} is not supported: only {', '.join(PROJECTIONS)} are")
    legacy = not second or given.get("legacy", True)
    params = {"name": arch, "layer": given.get("layer", "last"), "final_norm": legacy, "pad_id": 0}
    return params | ({"projection_dim": PROJECTIONS[arch]} if given.get("always_return_pooled", False) else {})


def image_tower(node: Mapping[str, Any]) -> Node:
    """Of unCLIP's `embedder_config`: open_clip's tower, or OpenAI's, which is of the GELU that it was trained with."""
    name, given = class_name(node), dict(node.get("params") or {})
    if name == "FrozenOpenCLIPImageEmbedder":
        refuse_unknown(name, given, RUN | {"arch", "layer", "antialias", "ucg_rate"})
        arch, known = given.get("arch", "ViT-H-14"), {tower: tower for tower in PROJECTIONS}
    elif name == "ClipImageEmbedder":
        refuse_unknown(name, given, {"model", "jit", "device", "antialias", "ucg_rate"})
        arch, known = given["model"], {"ViT-L/14": "ViT-L-14-quickgelu"}
    else:
        raise ValueError(f"the image encoder {name} is not supported")
    if arch not in known:
        raise ValueError(f"{arch!r} of {name} is not supported: only {', '.join(known)} are")
    return {"target": "OpenCLIPImageEncoder", "params": {"name": known[arch]}}


def class_embedder(given: Mapping[str, Any]) -> Node:
    refuse_unknown("ClassEmbedder", given, {"embed_dim", "n_classes", "key"})
    params = {"num_classes": given.get("n_classes", 1000), "embed_dim": given["embed_dim"]}
    return {"target": "ClassEmbedder", "params": params}


def bert(given: Mapping[str, Any]) -> Node:
    known = {"n_embed", "n_layer", "vocab_size", "max_seq_len", "use_tokenizer", "embedding_dropout"}
    refuse_unknown("BERTEmbedder", given, known | RUN)
    if not given.get("use_tokenizer", True):
        raise ValueError("BERTEmbedder without use_tokenizer reads no text, which is not supported")
    names = {"n_embed": "width", "n_layer": "layers", "vocab_size": "vocab_size", "max_seq_len": "context_length"}
    params = {"vocab_size": 30522, "max_seq_len": 77} | dict(given)
    return {"target": "BertTextEncoder", "params": {ours: params[theirs] for theirs, ours in names.items()}}


def class_name(node: Mapping[str, Any]) -> str:
    """`a.b.C` of a node's target -> `C`: forks move the modules, and keep the names."""
    return str(node["target"]).rpartition(".")[2]


def refuse_unknown(name: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{name} has params that are not known here: {', '.join(unknown)}")
