from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from ldm.checkpoint import text_keys
from ldm.checkpoint.meta import on_meta
from ldm.config import ConfigError, build
from ldm.models.clip import END, START, encode
from ldm.models.encoders import ClassEmbedder, NoText
from ldm.models.text_encoder import OpenCLIPTextEncoder, TwoTowers

SMALL = {"width": 32, "heads": 4, "layers": 3, "context_length": 16}
PROMPTS = ["a red cube", "", "a large shiny red sphere to the left of a small matte blue cube on a sunny day, at noon"]


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def scenes_tower() -> OpenCLIPTextEncoder:
    torch.manual_seed(0)
    return OpenCLIPTextEncoder(width=128, heads=4, layers=4, context_length=64)


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def pair(request: pytest.FixtureRequest) -> tuple[object, OpenCLIPTextEncoder]:
    """A random Hugging Face model, and our tower with its weights, through the key map."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=16, hidden_act=request.param, projection_dim=24, eos_token_id=END, bos_token_id=START,
    )  # fmt: skip
    theirs = transformers.CLIPTextModelWithProjection(config).eval()
    for name, tensor in theirs.named_parameters():  # away from the initial ones and zeros
        torch.nn.init.normal_(tensor, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    ours = OpenCLIPTextEncoder(**SMALL, activation=request.param, projection_dim=24).eval()
    ours.load_state_dict(text_keys.to_memory(dict(theirs.state_dict()), keep_projection=True))
    return theirs, ours


@pytest.mark.parametrize("pad_id", [0, END])
def test_agrees_with_transformers(pair: tuple, pad_id: int) -> None:
    theirs, ours = pair
    ours.pad_id = pad_id
    tokens = ours.tokenize(PROMPTS)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, output_hidden_states=True)
        norm = next(module for name, module in theirs.named_modules() if name.endswith("final_layer_norm"))
        *_, before, last = expected.hidden_states
        wanted = {("last", False): last, ("last", True): norm(last)}
        wanted |= {("penultimate", False): before, ("penultimate", True): norm(before)}
        for (ours.layer, ours.final_norm), states in wanted.items():
            features = ours(tokens)
            assert relative_error(features.states, states) < 1e-5
            assert relative_error(features.pooled, expected.text_embeds) < 1e-5
        assert relative_error(before, last) > 1e-2 and relative_error(norm(last), last) > 1e-2  # the options differ


def test_hugging_face_names_there_and_back(pair: tuple) -> None:
    theirs, _ = pair
    state = {k: v for k, v in theirs.state_dict().items() if "position_ids" not in k}
    back = text_keys.to_hugging_face(text_keys.from_hugging_face(state))
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_penultimate_without_pooling_does_not_run_the_last_layer(scenes_tower: OpenCLIPTextEncoder) -> None:
    tower = OpenCLIPTextEncoder(**SMALL, layer="penultimate")
    tower.tower.transformer.resblocks[-1].register_forward_hook(lambda *_: pytest.fail("the last layer ran"))
    assert tower(tower.tokenize(["x"])).states.shape == (1, 16, 32)


def test_tokens() -> None:
    tower = OpenCLIPTextEncoder(**SMALL, pad_id=END)
    assert tower.tokenize(["A  red CUBE"])[0, :6].tolist() == [START, 320, 736, 11353, END, END]
    tower.pad_id = 0
    rows = tower.tokenize(["", "red " * 100])
    assert rows.shape == (2, 16) and rows.dtype == torch.int64
    assert rows[0].tolist() == [START, END] + [0] * 14
    assert rows[1].tolist() == [START] + [736] * 14 + [END]


@pytest.mark.parametrize("text", ["<end_of_text>", "<START_OF_TEXT> a cube", "x<end_of_text>", "&lt;end_of_text&gt;"])
def test_user_text_never_becomes_a_special_token(text: str) -> None:
    ids = encode(text)
    assert ids and max(ids) < START


@pytest.mark.parametrize(
    "text", ["", " \n\t", "\0", "\ud800", "😀👩‍👩‍👧", "é\u0301" * 50, "a" * 100_000, "<|endoftext|>", "\u202e"]
)
def test_any_string_has_tokens(text: str) -> None:
    assert all(0 <= i < START for i in encode(text))


def test_same_tokens_as_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    ours = OpenCLIPTextEncoder(**SMALL)
    texts = [*PROMPTS, "It's 12 o'clock; l'été &amp; ＦＵＬＬ width — don't", "日本語のテキスト", "naïve café ½ ☃"]
    assert torch.equal(ours.tokenize(texts), open_clip.tokenizer.SimpleTokenizer()(texts, 16))


def test_same_tower_as_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    theirs = open_clip.transformer.TextTransformer(16, 49408, 32, 4, 3, output_dim=24).eval()
    ours = OpenCLIPTextEncoder(**SMALL, projection_dim=24).eval()
    ours.tower.load_state_dict(theirs.state_dict())
    tokens = ours.tokenize(PROMPTS)
    with torch.no_grad():
        assert relative_error(ours(tokens).pooled, theirs(tokens)) < 1e-6


def test_published_towers_on_meta() -> None:
    with on_meta():
        towers = {name: OpenCLIPTextEncoder(name) for name in ("ViT-L-14-quickgelu", "ViT-H-14", "ViT-bigG-14")}
    assert [tower.width for tower in towers.values()] == [768, 1024, 1280]
    assert [len(tower.tower.transformer.resblocks) for tower in towers.values()] == [12, 24, 32]
    gelu = [type(tower.tower.transformer.resblocks[0].mlp.gelu).__name__ for tower in towers.values()]
    assert gelu == ["QuickGELU", "GELU", "GELU"]


def test_a_meta_build_is_whole_after_loading(scenes_tower: OpenCLIPTextEncoder) -> None:
    with on_meta():
        empty = OpenCLIPTextEncoder(width=128, heads=4, layers=4, context_length=64)
    empty.load_state_dict(scenes_tower.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    tokens = empty.tokenize(["a red cube"])
    assert torch.equal(empty(tokens).states, scenes_tower(tokens).states)


def test_the_tower_trains(scenes_tower: OpenCLIPTextEncoder) -> None:
    features = scenes_tower(scenes_tower.tokenize(["a red cube"]))
    assert features.states.shape == (1, 64, 128) and features.pooled is None
    features.states.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scenes_tower.parameters())
    scenes_tower.zero_grad()


def test_later_tokens_do_not_change_earlier_states(scenes_tower: OpenCLIPTextEncoder) -> None:
    tokens = scenes_tower.tokenize(["a red cube", "a red sphere"])
    states = scenes_tower(tokens).states
    assert torch.allclose(states[0, :3], states[1, :3], atol=1e-6) and not torch.allclose(
        states[0, 3], states[1, 3], atol=1e-3
    )


def test_two_towers_are_each_as_alone() -> None:
    torch.manual_seed(0)
    first = OpenCLIPTextEncoder(**SMALL, layer="penultimate", final_norm=False, pad_id=END).eval()
    second = OpenCLIPTextEncoder(**SMALL | {"width": 16}, final_norm=False, projection_dim=6).eval()
    both = TwoTowers(first, second)
    tokens = both.tokenize(PROMPTS)
    assert tokens.shape == (3, 2, 16)
    with torch.no_grad():
        states, pooled = both(tokens)
        alone, other = first(first.tokenize(PROMPTS)), second(second.tokenize(PROMPTS))
    assert torch.equal(states, torch.cat([alone.states, other.states], dim=2)) and torch.equal(pooled, other.pooled)
    with pytest.raises(ValueError, match="one context_length, not 16 and 8"):
        TwoTowers(first, OpenCLIPTextEncoder(**SMALL | {"context_length": 8}))


def test_class_embedder_and_no_text() -> None:
    classes = ClassEmbedder(num_classes=11, embed_dim=4)
    assert classes.tokenize(["3", " 7 ", ""]).tolist() == [[3], [7], [10]]
    assert classes(classes.tokenize(["3"])).states.shape == (1, 1, 4)
    for bad in ("11", "-1", "cat", "³"):
        with pytest.raises(ValueError, match="0 to 10"):
            classes.tokenize([bad])
    assert NoText()(NoText().tokenize(["a", "b"])) == (None, None)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"name": "ViT-L-14-quikgelu"}, "ViT-L-14-quickgelu"),
        ({"name": "../ViT-L-14"}, "no text tower"),
        ({"name": "roberta-ViT-B-32"}, "not a plain CLIP transformer"),
        ({"name": "ViT-H-14", "width": 3}, "not both"),
        ({"width": 32, "heads": 4}, "needs width, heads and layers"),
        ({**SMALL, "vocab_size": 1000}, "49408"),
    ],
)
def test_mistakes(params: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OpenCLIPTextEncoder(**params)


def test_config_checks_the_choice_of_layer() -> None:
    with pytest.raises(
        ConfigError, match=r"params.layer: expected one of 'last', 'penultimate', found str 'penultimat'"
    ):
        build({"target": "OpenCLIPTextEncoder", "params": {**SMALL, "layer": "penultimat"}})


@pytest.mark.long
def test_a_tower_costs_no_heavy_import() -> None:
    code = (
        "import json, sys\nfrom ldm.models.text_encoder import OpenCLIPTextEncoder as T\n"
        "before = 'open_clip' in sys.modules or '_open_clip_text' in sys.modules\n"
        "T(width=32, heads=4, layers=2).tokenize(['a'])\n"
        "libraries = ('open_clip', 'timm', 'torchvision', 'transformers', 'huggingface_hub')\n"
        "heavy = [m for m in libraries if m in sys.modules]\n"
        "print(json.dumps([before, heavy]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == [False, []]


def test_what_is_not_read_is_told() -> None:
    tower = OpenCLIPTextEncoder(width=16, heads=2, layers=1, context_length=8)
    assert tower.unseen("one two three four five six seven eight") == ""  # it has chunks
    assert tower.unseen("a" * 10_000 + " the end") == " the end"
    assert NoText().unseen("anything " * 100) == ""
