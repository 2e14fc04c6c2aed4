"""Names of the BERT tower's tensors: the original's (x-transformers) and diffusers' (LDMBertModel) <-> ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm.models.bert import BertTextEncoder

Names = Mapping[str, str]

ORIGINAL: Names = {  # ours -> theirs, of modules; {i} counts blocks, of which the original makes two layers each
    "token_embedding": "transformer.token_emb",
    "position_embedding": "transformer.pos_emb.emb",
    "layers.{i}.norm1": "transformer.attn_layers.layers.{even}.0",
    "layers.{i}.attn.to_q": "transformer.attn_layers.layers.{even}.1.to_q",
    "layers.{i}.attn.to_k": "transformer.attn_layers.layers.{even}.1.to_k",
    "layers.{i}.attn.to_v": "transformer.attn_layers.layers.{even}.1.to_v",
    "layers.{i}.attn.to_out.0": "transformer.attn_layers.layers.{even}.1.to_out",
    "layers.{i}.norm2": "transformer.attn_layers.layers.{odd}.0",
    "layers.{i}.ff.0": "transformer.attn_layers.layers.{odd}.1.net.0.0",
    "layers.{i}.ff.2": "transformer.attn_layers.layers.{odd}.1.net.2",
    "final_norm": "transformer.norm",
}
DIFFUSERS: Names = {
    "token_embedding": "model.embed_tokens",
    "position_embedding": "model.embed_positions",
    "layers.{i}.norm1": "model.layers.{i}.self_attn_layer_norm",
    "layers.{i}.attn.to_q": "model.layers.{i}.self_attn.q_proj",
    "layers.{i}.attn.to_k": "model.layers.{i}.self_attn.k_proj",
    "layers.{i}.attn.to_v": "model.layers.{i}.self_attn.v_proj",
    "layers.{i}.attn.to_out.0": "model.layers.{i}.self_attn.out_proj",
    "layers.{i}.norm2": "model.layers.{i}.final_layer_norm",
    "layers.{i}.ff.0": "model.layers.{i}.fc1",
    "layers.{i}.ff.2": "model.layers.{i}.fc2",
    "final_norm": "model.layer_norm",
}
NOT_LOADED = ("transformer.to_logits.", "to_logits.")  # predicted words once; the image model listens to the states


def to_memory(tensors: Mapping[str, Tensor], encoder: BertTextEncoder) -> dict[str, Tensor]:
    """Either layout, or ours, without the file's own prefix -> names of `encoder`. Unknown names are kept."""
    ours = {theirs: name for names in (ORIGINAL, DIFFUSERS) for name, theirs in _table(names, encoder).items()}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_LOADED)}
    return _renamed(kept, ours)


def to_original(encoder: BertTextEncoder) -> dict[str, Tensor]:
    """The inverse, less `to_logits`."""
    return _renamed(encoder.state_dict(), _table(ORIGINAL, encoder))


def to_diffusers(encoder: BertTextEncoder) -> dict[str, Tensor]:
    """The names of LDMBertModel, less `to_logits`."""
    return _renamed(encoder.state_dict(), _table(DIFFUSERS, encoder))


def _table(names: Names, encoder: BertTextEncoder) -> dict[str, str]:
    """Ours -> theirs, of every module."""
    counts = [{"i": i, "even": 2 * i, "odd": 2 * i + 1} for i in range(len(encoder.layers))]
    return {ours.format(**count): theirs.format(**count) for count in counts for ours, theirs in names.items()}


def _renamed(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    parts = {name: name.rpartition(".") for name in tensors}  # module, ".", weight or bias
    return {f"{table.get(module, module)}{dot}{leaf}": tensors[name] for name, (module, dot, leaf) in parts.items()}
