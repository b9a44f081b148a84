import torch
from torch.testing import assert_close

from spatext.modules.functional.packed_text import pack_text, unpack_text


def test_what_was_packed_is_unpacked() -> None:
    pooled, states = torch.randn(2, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    text = pack_text(pooled, states, mask)
    assert text.shape == (2, 4, 4)
    found = unpack_text(text)
    assert_close(found, (pooled, states * mask[..., None], mask), rtol=0, atol=0)


def test_padding_is_zero_whatever_it_held() -> None:
    states = torch.full((1, 2, 4), torch.nan)
    states[:, 0] = 1.0
    text = pack_text(torch.ones(1, 4), states, torch.tensor([[True, False]]))
    assert text.sum() == 8
    assert unpack_text(text.half())[2].tolist() == [[True, False]]


def test_gradients_reach_pooled_and_unmasked_states() -> None:
    pooled, states = torch.randn(1, 4, requires_grad=True), torch.randn(1, 2, 4, requires_grad=True)
    pack_text(pooled, states, torch.tensor([[True, False]])).sum().backward()
    assert pooled.grad is not None
    assert states.grad is not None
    assert pooled.grad.tolist() == [[1.0] * 4]
    assert states.grad.tolist() == [[[1.0] * 4, [0.0] * 4]]
