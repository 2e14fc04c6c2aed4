from __future__ import annotations

import torch

from ldm.modules.attention import Attention, AttentionBlock, attention, to_image, to_tokens


def test_attention_is_a_softmax_of_scaled_products() -> None:
    q, k, v = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    weights = (q @ k.transpose(2, 3) / 4**0.5).softmax(dim=3)
    torch.testing.assert_close(attention(q, k, v), weights @ v)


def test_heads_are_consecutive_channels() -> None:
    layer = Attention(8, num_heads=2)
    for linear in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]):
        torch.nn.init.eye_(linear.weight)
    torch.nn.init.zeros_(layer.to_out[0].bias)
    x = torch.randn(1, 6, 8)
    apart = [attention(h, h, h) for h in x[:, None].chunk(2, dim=3)]  # each (1, 1, 6, 4)
    torch.testing.assert_close(layer(x), torch.cat(apart, dim=3)[:, 0])


def test_context_has_its_own_width_and_length() -> None:
    layer = Attention(8, num_heads=2, context_dim=3)
    x, context = torch.randn(2, 6, 8), torch.randn(2, 5, 3)
    assert layer(x, context).shape == (2, 6, 8)
    assert not torch.equal(layer(x, context), layer(x, context.roll(1, 0)))


def test_tokens_and_image_are_views_of_channels_last() -> None:
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tokens = to_tokens(image)
    assert tokens.is_contiguous() and tokens.data_ptr() == image.data_ptr()
    assert torch.equal(tokens[:, 1 * 5 + 2], image[:, :, 1, 2])
    back = to_image(tokens, 4, 5)
    assert torch.equal(back, image) and back.data_ptr() == image.data_ptr()


def test_block_starts_from_its_residual() -> None:
    block = AttentionBlock(8, num_heads=2, groups=4, eps=1e-5)
    torch.nn.init.zeros_(block.to_out[0].weight)
    torch.nn.init.zeros_(block.to_out[0].bias)
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(block(x), x)
