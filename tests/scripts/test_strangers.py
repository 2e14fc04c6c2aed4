"""Files that are no model, or not the part they are given as: the one at fault is named, what it is, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def pair(name: str, down: str, up: str, width: int) -> dict[str, Tensor]:
    return {f"{name}{down}.weight": torch.zeros(4, width), f"{name}{up}.weight": torch.zeros(320, 4)}


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PEFT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OLD = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"
STRANGERS: dict[str, tuple[dict[str, Tensor], str]] = {
    "LoRA of kohya": (
        pair(KOHYA, ".lora_down", ".lora_up", 768) | {f"{KOHYA}.alpha": torch.ones(())},
        "a LoRA for SD 1.x (context 768): 3 of its 3 tensors are changes to another file's, "
        "and 0 are weights of a model; merge it into its model",
    ),
    "LoRA of peft": (pair(PEFT, ".lora_A", ".lora_B", 1024), "a LoRA for SD 2.x (context 1024): 2 of its 2 tensors"),
    "LoRA of 2023": (pair(OLD, ".down", ".up", 2048), "a LoRA for SDXL base (context 2048): 2 of its 2 tensors"),
    "LoKr": (
        {"lora_unet_mid_block_conv.lokr_w1": torch.ones(2, 2), "lora_unet_mid_block_conv.lokr_w2": torch.ones(2, 2)},
        "a LoRA: 2 of its 2 tensors",
    ),
    "embedding": (
        {"emb_params": torch.ones(2, 768)},
        "a textual-inversion embedding for SD 1.x (context 768): 0 of its 1 tensors are weights of a model; "
        "embeddings are not read here: leave it out",
    ),
    "embedding of two towers": (
        {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)},
        "a textual-inversion embedding for SDXL base (context 2048): 0 of its 2 tensors",
    ),
    "embedding of diffusers": (
        {"<a-cat>": torch.ones(1024)},
        "a textual-inversion embedding for SD 2.x (context 1024)",
    ),
    "Stable Diffusion 3": (
        {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.ones(2, 2)},
        "a model of Stable Diffusion 3, whose network is a transformer (1 tensors); give one of Stable Diffusion 1, 2",
    ),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}, "a model of Flux, whose network is"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_model(txt2img: Run, capsys: Capture, name: str) -> None:
    tensors, words = STRANGERS[name]
    save_file(tensors, "given.safetensors")
    for option in ("--model", "--vae", "--text-encoder"):
        assert txt2img("--prompt", "a", option, "given.safetensors") == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: given.safetensors: this is {words}") and err.count("\n") == 1, err
    assert not list(Path().rglob("*.png"))


def test_an_embedding_in_a_pickle(txt2img: Run, capsys: Capture) -> None:
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(1, 768)}, "name": "a"}, "given.pt")
    assert txt2img("--prompt", "a", "--text-encoder", "given.pt") == 2
    assert "given.pt: this is a textual-inversion embedding for SD 1.x (context 768): 0" in capsys.readouterr().err


def test_a_part_alone_and_in_the_wrong_place(txt2img: Run, tiny_file: Path, capsys: Capture) -> None:
    for part, remedy in (("autoencoder", "--vae"), ("text_encoder", "--text-encoder")):
        own = {name: tensor for name, tensor in load_file(tiny_file).items() if name.startswith(f"{part}.")}
        save_file(own, f"{part}.safetensors")
        assert txt2img("--prompt", "a", "--model", f"{part}.safetensors") == 2
        err = capsys.readouterr().err
        assert f"error: {part}.safetensors: this is a" in err and err.endswith(f" ({remedy})\n"), err
        assert f"{part.replace('_', ' ')} alone; give a whole model" in err
    assert txt2img("--prompt", "a", "--vae", "text_encoder.safetensors") == 2
    err = capsys.readouterr().err
    assert f"text_encoder.safetensors: none of its {len(own)} tensors is of the autoencoder; give a file that" in err
