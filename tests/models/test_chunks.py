"""How CLIP's towers read prompts of any length and words of any weight."""

from __future__ import annotations

import pytest
import torch

from ldm.checkpoint import text_keys
from ldm.models.chunks import chunked, emphasized
from ldm.models.clip import END, START, encode
from ldm.models.text_encoder import ChunkedTextEncoder, OpenCLIPTextEncoder, TwoTowers
from ldm.prompt import parse
from ldm.prompt_tree import Passage, Span

SMALL = {"width": 16, "heads": 2, "layers": 3}
CPU = torch.device("cpu")
COMMA = 0


def passage(text: str) -> Passage:
    ((_, found),) = parse(text).at(0, 1)
    return found


def ids(text: str) -> list[int]:
    """A token a word, whose number it is; a comma is 0."""
    return [COMMA if word == "," else int(word) for word in text.split()]


def numbers(*words: object) -> str:
    return " ".join(map(str, words))


def tokens(text: str, window: int) -> list[list[int]]:
    return [[token for token, _ in chunk] for chunk in chunked(passage(text), ids, window, COMMA)]


def make(**params: object) -> OpenCLIPTextEncoder:
    torch.manual_seed(0)
    tower = OpenCLIPTextEncoder(**{**SMALL, "context_length": 8, **params}).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower


def test_where_chunks_end() -> None:
    assert tokens("", 4) == [[]]
    assert tokens("1 2 3 4", 4) == [[1, 2, 3, 4]]
    assert tokens("1 2 3 4 5", 4) == [[1, 2, 3, 4], [5]]
    assert tokens(numbers(*range(1, 13)), 5) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]
    # BREAK: an empty part is an empty chunk, but at the end of all
    assert tokens("1 2 BREAK 3", 4) == [[1, 2], [3]]
    assert tokens("1 2 3 4 BREAK 5", 4) == [[1, 2, 3, 4], [5]]
    assert tokens("BREAK 1", 4) == [[], [1]]
    assert tokens("1 BREAK", 4) == [[1]]
    assert tokens("1 BREAK BREAK 2", 4) == [[1], [], [2]]
    assert tokens("BREAK", 4) == [[]]
    assert tokens("1 2 (3 BREAK 4:1.5)", 2) == [[1, 2], [3], [4]]


def test_a_phrase_near_the_end_goes_over_whole() -> None:
    words = list(range(1, 31))
    near, far = numbers(*words[:12], ",", *words[12:]), numbers(*words[:3], ",", *words[3:])
    assert tokens(near, 25) == [[*words[:12], COMMA], words[12:]]
    assert tokens(far, 25) == [[*words[:3], COMMA, *words[3:24]], words[24:]]  # 21 tokens behind its last comma
    assert tokens(numbers(*words[:25], ",", 7), 25) == [words[:25], [COMMA, 7]]  # as A1111: a comma may begin a chunk
    assert tokens(numbers(*[1, ","] * 20), 25)[0] == [1, COMMA] * 12 + [1]  # the next token is a comma


def test_weights_stay_with_their_tokens() -> None:
    chunks = chunked(passage("1 (2 3:1.5) [4] BREAK ((5))"), ids, 3, COMMA)
    flat = [[(token, round(weight, 6)) for token, weight in chunk] for chunk in chunks]
    assert flat == [[(1, 1), (2, 1.5), (3, 1.5)], [(4, 0.909091)], [(5, 1.21)]]


@pytest.mark.parametrize("params", [{}, {"context_length": 12, "causal": False}, {"pad_id": END, "projection_dim": 4}])
@torch.no_grad()
def test_a_long_prompt_is_its_chunks_one_after_another(params: dict) -> None:
    tower = make(**params)
    length = tower.context_length
    words = encode("one two three four five six seven eight nine ten eleven twelve thirteen")
    states, pooled = tower.read(
        [passage("one two three four five six seven eight nine ten eleven twelve thirteen")], CPU
    )
    by_hand = []
    for start in range(0, len(words), length - 2):
        row = torch.full((1, length), tower.pad_id)
        chunk = [START, *words[start : start + length - 2], END]
        row[0, : len(chunk)] = torch.tensor(chunk)
        by_hand.append(tower(row))
    assert len(by_hand) > 1 and states.shape == (1, len(by_hand) * length, 16)
    assert torch.allclose(states, torch.cat([features.states for features in by_hand], dim=1), atol=1e-6)
    if pooled is not None:
        assert torch.allclose(pooled, by_hand[0].pooled, atol=1e-6)


@torch.no_grad()
def test_a_short_prompt_without_syntax_is_what_it_was_bit_for_bit() -> None:
    for tower in (make(context_length=16, projection_dim=4), make(context_length=16, layer="penultimate")):
        texts = ["a red cube", "", "time 4:30, a|b"]
        was, now = tower(tower.tokenize(texts)), tower.read([passage(text) for text in texts], CPU)
        assert torch.equal(was.states, now.states) and (was.pooled is None or torch.equal(was.pooled, now.pooled))
        emphatic = tower.read([passage("a (red:1) cube"), passage(""), passage("((a:1):1)")], CPU)
        assert torch.equal(emphatic.states[0], was.states[0])


def test_a_weight_keeps_the_mean() -> None:
    states = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[1.0, 3.0], [2.0, 2.0]], [[1.0, -1.0], [2.0, -2.0]]])
    weights = torch.tensor([[1.0, 2.0], [1.0, 1.0], [3.0, 1.0]])
    # row 0: (1, 3), (4, 4) has mean 3, and had 2; row 2 has mean 0, which nothing restores
    expected = torch.tensor([[[2 / 3, 2.0], [8 / 3, 8 / 3]], [[1.0, 3.0], [2.0, 2.0]], [[3.0, -3.0], [2.0, -2.0]]])
    assert torch.allclose(emphasized(states, weights), expected)
    assert torch.equal(emphasized(states, weights)[1], states[1])
    assert emphasized(states.half(), weights).dtype == torch.float16


@torch.no_grad()
def test_weights_are_of_the_states_of_their_chunk() -> None:
    tower = make(context_length=6)
    plain = tower.read([passage("one two three four BREAK five")], CPU).states[0]
    states = tower.read([passage("one (two three:1.4) four BREAK five")], CPU).states[0]
    scaled = plain[:6] * torch.tensor([1, 1, 1.4, 1.4, 1, 1])[:, None]
    assert torch.allclose(states[:6], scaled * plain[:6].mean() / scaled.mean(), atol=1e-6)
    assert torch.equal(states[6:], plain[6:])


@torch.no_grad()
def test_two_towers_each_restore_their_own_mean() -> None:
    first, second = make(layer="penultimate", final_norm=False, pad_id=END), make(width=8, projection_dim=4)
    both, text = TwoTowers(first, second), passage("one (two:1.5) three four five six seven eight")
    states, pooled = both.read([text], CPU)
    alone = [tower.read([text], CPU) for tower in (first, second)]
    assert torch.allclose(states, torch.cat([alone[0].states, alone[1].states], dim=2))
    assert states.shape == (1, 16, 24) and torch.allclose(pooled, alone[1].pooled)
    assert torch.allclose(
        pooled, second.read([passage("one two three four five six")], CPU).pooled
    )  # the first chunk's


@torch.no_grad()
def test_a_prompt_does_not_depend_on_its_company() -> None:
    tower = make()
    texts = ["one (two:1.5) BREAK three", "[four] five six seven eight nine ten", "x BREAK y"]
    together = tower.read([passage(text) for text in texts], CPU).states
    for row, text in zip(together, texts, strict=True):
        assert torch.allclose(row, tower.read([passage(text)], CPU).states[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"prompts of \[1, 2\] chunks"):
        tower.read([passage("a"), passage(texts[0])], CPU)


@pytest.mark.parametrize("layer", ["last", "penultimate"])
@pytest.mark.parametrize("final_norm", [True, False])
@torch.no_grad()
def test_clip_skip_is_an_earlier_hidden_state(layer: str, final_norm: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=16, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=8, hidden_act="quick_gelu", projection_dim=6, eos_token_id=END, bos_token_id=START,
    )  # fmt: skip
    theirs = transformers.CLIPTextModelWithProjection(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    shape = {"width": 16, "heads": 2, "layers": 4, "context_length": 8, "activation": "quick_gelu", "projection_dim": 6}
    ours = OpenCLIPTextEncoder(**shape, layer=layer, final_norm=final_norm).eval()
    ours.load_state_dict(text_keys.to_memory(dict(theirs.state_dict()), keep_projection=True))
    rows = ours.tokenize(["a red cube"])
    expected = theirs(input_ids=rows, output_hidden_states=True)
    norm = next(module for name, module in theirs.named_modules() if name.endswith("final_layer_norm"))
    own = 1 if layer == "last" else 2  # hidden_states[-1] is the last layer's
    assert ours.layers == 5 - own
    for clip_skip in range(1, ours.layers + 1):
        wanted = expected.hidden_states[-(own + clip_skip - 1)]
        found = ours(rows, clip_skip=clip_skip)
        assert torch.allclose(found.states, norm(wanted) if final_norm else wanted, atol=1e-5)
        assert torch.allclose(found.pooled, expected.text_embeds, atol=1e-5)  # of the last layer all the same
    for clip_skip in (0, ours.layers + 1):
        with pytest.raises(ValueError, match=f"clip_skip is {clip_skip}; .* it can be 1 .* … {ours.layers}"):
            ours(rows, clip_skip=clip_skip)


def test_skipped_layers_do_not_run() -> None:
    tower = make()
    tower.tower.transformer.resblocks[-1].register_forward_hook(lambda *_: pytest.fail("the last layer ran"))
    assert isinstance(tower, ChunkedTextEncoder)
    tower(tower.tokenize(["a"]), clip_skip=2)


@pytest.mark.parametrize("text", ["(<end_of_text>:1.2)", "[<start_of_text>|x]", r"\<end_of_text\>", "<end_of_(text)>"])
def test_no_text_becomes_a_special_token(text: str) -> None:
    tower = make(context_length=40)
    for span in passage(text)[0]:
        assert isinstance(span, Span)
    assert all(token < START for chunk in tower.chunks(passage(text)) for token, _ in chunk)
