"""A pinned kernel is the one that runs, and one that is not there is refused in a sentence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.backends import cuda

from ldm.backends import BACKENDS, check_backend, pinned
from ldm.modules.attention import attention

ENABLED = {
    "math": cuda.math_sdp_enabled,
    "flash": cuda.flash_sdp_enabled,
    "efficient": cuda.mem_efficient_sdp_enabled,
    "cudnn": cuda.cudnn_sdp_enabled,
}


@pytest.mark.parametrize("name", list(BACKENDS))
def test_one_is_enabled_with_what_does_the_rest_and_afterwards_all_are_again(name: str) -> None:
    before = [enabled() for enabled in ENABLED.values()]
    rest = set() if name == "math" else {"efficient", "math"}
    with pinned(name):
        assert {other for other, enabled in ENABLED.items() if enabled()} == {name} | rest
    assert [enabled() for enabled in ENABLED.values()] == before


@pytest.mark.parametrize("name", [None, "auto", "math", "flash"])
def test_a_cpu_has_two_and_they_agree(name: str | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 70, 16)
    check_backend(name, "cpu", torch.float32)
    wanted = F.softmax(q.double() @ k.double().mT / 4, dim=-1) @ v.double()
    with pinned(name):
        torch.testing.assert_close(attention(q, k, v).double(), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["efficient", "cudnn"])
def test_one_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--attention {name}: torch .* has none for float32 on cpu; use auto$"):
        check_backend(name, "cpu", torch.float32)
