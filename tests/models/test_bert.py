"""The BERT tower against its formula and against diffusers; WordPiece against the `tokenizers` library."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from ldm.checkpoint import bert_keys
from ldm.config import build
from ldm.models.bert import VOCABULARY, BertTextEncoder, WordPiece, words

SMALL = {"width": 24, "layers": 3, "heads": 2, "head_channels": 8, "context_length": 12, "vocab_size": 40}
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "cube",
    "sphere",
    "##s",
    "##cube",
    "cub",
    "##e",
    "un",
]
WORDS += [
    "##touch",
    "##able",
    "naive",
    "cafe",
    "日",
    "本",
    "!",
    "'",
    ",",
    "$",
    "[",
    "]",
    "##sep",
    "sep",
    "σ",
    "##σ",
    "b",
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


def tokens_of(wordpiece: WordPiece, text: str) -> list[int]:
    return [i for word in words(text) for i in wordpiece.tokens(word)]


# --- the tower ---------------------------------------------------------------------------------------------------


def formula(state: dict[str, Tensor], tokens: Tensor, heads: int) -> Tensor:
    """The published network in plain functions, by the published names: pre-norm, no mask, positions not scaled."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    x = state["transformer.token_emb.weight"][tokens] + state["transformer.pos_emb.emb.weight"][: tokens.shape[1]]
    layer = "transformer.attn_layers.layers.{}"
    for n in range(0, 2 * SMALL["layers"], 2):
        attend, feed = layer.format(n), layer.format(n + 1)
        h = norm(f"{attend}.0", x)
        q, k, v = (linear(f"{attend}.1.to_{name}", h).unflatten(2, (heads, -1)).transpose(1, 2) for name in "qkv")
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=3)
        x = x + linear(f"{attend}.1.to_out", (weights @ v).transpose(1, 2).flatten(2))
        x = x + linear(f"{feed}.1.net.2", F.gelu(linear(f"{feed}.1.net.0.0", norm(f"{feed}.0", x))))
    return norm("transformer.norm", x)


def test_agrees_with_the_formula(filled: Callable[..., Any], relative_error: Callable[..., float]) -> None:
    encoder = filled(BertTextEncoder(**SMALL))
    original = bert_keys.to_original(encoder)
    tokens = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states, pooled = encoder(tokens)
        assert relative_error(states, formula(original, tokens, heads=2)) < 1e-6
        assert relative_error(states, formula(original, tokens.flip(1), heads=2).flip(1)) > 1e-2  # positions count
    assert pooled is None


def test_agrees_with_diffusers(relative_error: Callable[..., float]) -> None:
    torch.manual_seed(0)
    config = LDMBertConfig(
        vocab_size=40, max_position_embeddings=12, encoder_layers=3, encoder_ffn_dim=96, encoder_attention_heads=2,
        head_dim=8, d_model=24,
    )  # fmt: skip
    theirs = LDMBertModel(config).eval()
    for tensor in theirs.parameters():
        torch.nn.init.normal_(tensor, std=0.3)
    ours = BertTextEncoder(**SMALL)
    ours.load_state_dict(bert_keys.to_memory(theirs.state_dict(), ours))
    tokens = torch.randint(40, (2, 12))
    with torch.no_grad():
        (wanted,) = theirs(tokens, output_attentions=False, output_hidden_states=False, return_dict=False)
        assert relative_error(ours(tokens).states, wanted) < 1e-5


def test_padding_is_attended_to() -> None:
    """No mask: the published model was trained so."""
    torch.manual_seed(0)
    encoder = BertTextEncoder(**SMALL).eval()
    tokens = torch.tensor([[2, 5, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    other = tokens.clone()
    other[0, -1] = 7
    with torch.no_grad():
        assert not torch.allclose(encoder(tokens).states[0, 0], encoder(other).states[0, 0], atol=1e-4)


# --- tokens ------------------------------------------------------------------------------------------------------

TEXTS = [
    "a red cube", "", " \t\n", "A RED, red CUBES!", "untouchable unbelievable", "naïve café CAFE\u0301", "日本語 red日",
    "it's $5, [a]", "a\u00a0b\u2003a\u200bb\u2028a", "a\0b\x07\ufffd\ufeff", "a" * 100 + " " + "a" * 101,
    "😀 red 👩‍👩‍👧",
    "ΣΣ σς", "İ", "ﬁ ½ ☃ — “red” …", "redcube cubecube", "豈 﨎 𠀀", "a^b~c`|+=<>", "한국어",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_same_tokens_as_the_library(text: str, vocabulary: Path) -> None:
    """The one that the original uses, through transformers."""
    theirs = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    ours = WordPiece(vocabulary.read_text(encoding="utf-8").split())
    assert tokens_of(ours, text) == theirs.encode(text, add_special_tokens=False).ids


def test_same_tokens_with_the_whole_vocabulary() -> None:
    theirs = BertWordPieceTokenizer(str(VOCABULARY), lowercase=True)
    encoder = BertTextEncoder(**SMALL | {"vocab_size": 30522})
    rng = random.Random(0)
    letters = [*map(chr, range(32, 127)), *"  eeaaottinss", *"éüñçøåŁßžÀÉ日本語漢字한국—“”’…½²€"]
    for text in [*TEXTS, *("".join(rng.choices(letters, k=rng.randint(1, 40))) for _ in range(500))]:
        assert tokens_of(encoder.wordpiece, text) == theirs.encode(text, add_special_tokens=False).ids, text


def test_window() -> None:
    encoder = BertTextEncoder(**SMALL | {"vocab_size": 30522})
    assert encoder.tokenize(["a virus monster is playing guitar"]).tolist() == [
        [101, 1037, 7865, 6071, 2003, 2652, 2858, 102, 0, 0, 0, 0]
    ]
    row = encoder.tokenize(["red " * 100])[0]
    assert row.tolist() == [101] + [2417] * 10 + [102] and row.dtype == torch.int64
    assert encoder.unseen("red " * 10) == ""
    assert encoder.unseen("Red, " * 5 + "cubes, untouchable") == "cubes , untouchable"
    assert encoder.unseen("red " * 9 + "Unbelievableness") == "unbelievableness"  # cut within the word


@pytest.mark.parametrize("text", ["[SEP]", "[cls] a", "a [PAD][MASK]", "[UNK]", "##s", "\ud800", "a" * 50_000])
def test_any_string_has_tokens_and_none_is_special(text: str) -> None:
    tokens = BertTextEncoder(**SMALL | {"vocab_size": 30522}).tokenize([text])[0, 1:]
    written = tokens[: tokens.tolist().index(102)]
    assert not set(written.tolist()) & {0, 101, 102, 103}


def test_the_vocabulary_is_a_param(vocabulary: Path, tmp_path: Path) -> None:
    node = {"target": "BertTextEncoder", "params": SMALL | {"vocabulary": str(vocabulary)}}
    assert build(node).tokenize(["red cubes"])[0, :5].tolist() == [2, 6, 7, 9, 3]

    def mistake(path: Path, **params: int) -> str:
        with pytest.raises(ValueError) as caught:
            BertTextEncoder(**SMALL | params, vocabulary=str(path)).tokenize(["a"])
        return str(caught.value)

    assert "there is no vocabulary" in mistake(tmp_path / "none.txt") and "vocab.txt of bert-base-uncased" in mistake(
        tmp_path
    )
    assert f"has {len(WORDS)} tokens for a vocab_size of 20" in mistake(vocabulary, vocab_size=20)
    (tmp_path / "other.txt").write_text("[PAD]\nred\n")
    assert "has no [UNK], [CLS], [SEP]" in mistake(tmp_path / "other.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "not usable as a vocabulary" in mistake(tmp_path / "binary.txt")
