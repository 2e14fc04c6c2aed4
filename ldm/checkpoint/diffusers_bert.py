"""The BERT tower in a diffusers folder: what `LDMBertModel` and transformers' `BertTokenizer` are built from."""

from __future__ import annotations

import json
from typing import Any, cast

from ldm.models.bert import BertBlock, BertTextEncoder


def config(encoder: BertTextEncoder) -> dict[str, Any]:
    attn = cast(BertBlock, encoder.layers[0]).attn
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": encoder.vocab_size,
        "max_position_embeddings": encoder.context_length,
        "encoder_layers": len(encoder.layers),
        "encoder_ffn_dim": 4 * encoder.width,
        "encoder_attention_heads": attn.num_heads,
        "head_dim": attn.to_q.out_features // attn.num_heads,
        "d_model": encoder.width,
        "activation_function": "gelu",
        "pad_token_id": encoder.wordpiece.pad,
    }


def tokenizer_files(encoder: BertTextEncoder) -> dict[str, str]:
    """By name of the file."""
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": encoder.context_length}
    return {
        "vocab.txt": encoder.vocabulary.read_text(encoding="utf-8"),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }
