"""The text tower of the 1.4B text-to-image model of Rombach et al. 2022, and the WordPiece tokens it reads.

They call it BERT for its vocabulary, that of bert-base-uncased (Devlin et al. 2018, arXiv:1810.04805). The network is a
pre-norm transformer that attends to everything, padding too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.config import register
from ldm.models.encoders import TextEncoder, TextFeatures
from ldm.modules.attention import Attention
from ldm.prompt import MAX_CHARACTERS

VOCABULARY = Path(__file__).parents[1] / "assets" / "bert-base-uncased.txt"
MAX_WORD = 100  # characters; a longer word is unknown
IDEOGRAPHS = (  # each is a word of its own
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class BertBlock(nn.Module):
    """Self-attention and a feed-forward network, each normalised before and added after."""

    def __init__(self, width: int, heads: int, head_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, head_channels=head_channels)
        self.norm2 = nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))  # (B, L, width)
        return x + self.ff(self.norm2(x))


@register("BertTextEncoder", "ldm.modules.encoders.modules.BERTEmbedder")
class BertTextEncoder(TextEncoder):
    """The whole window's states after the last norm, for cross-attention; no pooled vector.

    vocabulary: a text file of one token a line, of which there are at most `vocab_size`; None is bert-base-uncased's.
    """

    def __init__(
        self,
        width: int = 1280,
        layers: int = 32,
        heads: int = 8,
        head_channels: int = 64,
        context_length: int = 77,
        vocab_size: int = 30522,
        vocabulary: str | None = None,
    ) -> None:
        super().__init__()
        self.width, self.context_length, self.vocab_size = width, context_length, vocab_size
        self.vocabulary = VOCABULARY if vocabulary is None else Path(vocabulary)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context_length, width)
        self.layers = nn.ModuleList(BertBlock(width, heads, head_channels) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)

    @property
    def wordpiece(self) -> WordPiece:
        """ValueError if the vocabulary cannot be read or is another model's."""
        wordpiece = _wordpiece(self.vocabulary)
        if len(wordpiece.ids) > self.vocab_size:
            raise ValueError(
                f"{self.vocabulary} has {len(wordpiece.ids)} tokens for a vocab_size of {self.vocab_size}; "
                "give the vocabulary this model was trained with"
            )
        return wordpiece

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, context_length) int64: [CLS], tokens (cut to fit), [SEP], padding."""
        assert not isinstance(texts, str)
        wordpiece = self.wordpiece
        rows = torch.full((len(texts), self.context_length), wordpiece.pad)  # (B, L)
        for row, text in zip(rows, texts, strict=True):
            tokens = [i for word in words(text) for i in wordpiece.tokens(word)]
            ids = [wordpiece.start, *tokens[: self.context_length - 2], wordpiece.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def unseen(self, text: str) -> str:
        """As `TextEncoder.unseen`, in lower case, from the first word that is cut."""
        room, rest = self.context_length - 2, words(text)
        for i, word in enumerate(rest):
            room -= len(self.wordpiece.tokens(word))
            if room < 0:
                return " ".join(rest[i:])
        return ""

    def forward(self, tokens: Tensor) -> TextFeatures:
        """(B, L) int64 -> states (B, L, width)."""
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]  # (B, L, width)
        for layer in self.layers:
            x = layer(x)
        return TextFeatures(self.final_norm(x), None)


# --- tokens ------------------------------------------------------------------------------------------------------


class WordPiece:
    """A vocabulary whose entries that begin with ## continue a word; a token's id is its line."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.ids = {token: i for i, token in enumerate(vocabulary)}
        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
        missing = [token for token in special if token not in self.ids]
        if missing:
            raise ValueError(f"has no {', '.join(missing)}")
        self.pad, self.unknown, self.start, self.end = (self.ids[token] for token in special)

    def tokens(self, word: str) -> list[int]:
        """The longest entry that the word begins with, then the longest that goes on, …; else the unknown token."""
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1) if len(word) <= MAX_WORD else range(0)
            end = next((end for end in ends if prefix + word[start:end] in self.ids), None)
            if end is None:
                return [self.unknown]
            ids.append(self.ids[prefix + word[start:end]])
            start = end
        return ids


def words(text: str) -> list[str]:
    """Lower case without accents and control characters; each punctuation mark and each ideograph is a word.

    A typed "[SEP]" is three words, so nothing in a text becomes a special token.
    """
    return "".join(_spaced(text[:MAX_CHARACTERS])).split()


def _spaced(text: str) -> Iterator[str]:
    """The characters of the words, with spaces between words."""
    kept = "".join(" " if c in "\t\n\r" else c for c in text if c in "\t\n\r" or not _is_control(c))
    for c in unicodedata.normalize("NFD", kept):
        if unicodedata.category(c) == "Mn":
            continue
        for lower in c.lower():  # one by one: no final sigma
            yield f" {lower} " if _is_punctuation(lower) or _is_ideograph(lower) else lower


def _is_control(c: str) -> bool:
    return c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs")


def _is_punctuation(c: str) -> bool:
    symbol = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    return symbol or unicodedata.category(c).startswith("P")


def _is_ideograph(c: str) -> bool:
    return any(first <= ord(c) <= last for first, last in IDEOGRAPHS)


@lru_cache
def _wordpiece(path: Path) -> WordPiece:
    remedy = "give the vocab.txt of bert-base-uncased"
    if not path.is_file():  # nor a device, which could be read for ever
        raise ValueError(f"there is no vocabulary {path}; {remedy}")
    try:
        return WordPiece(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not usable as a vocabulary ({error}); {remedy}") from error
