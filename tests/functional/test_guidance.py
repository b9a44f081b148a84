import pytest
import torch

from branches import ALL, CONDITIONS, NONE, NULL, ST, TEXT, X_T, B, Denoise, T, branch, draw
from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.guidance import combine, fast_guidance, full_guidance


def test_combine() -> None:
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])
    zero = torch.tensor([[0.5], [1.0]])
    found = combine(zero, [a, b], [2.0, torch.tensor([0.0, 1.0])])
    torch.testing.assert_close(found, torch.tensor([[1.5], [6.0]]))


def test_fast_is_one_call_of_two_branches() -> None:
    denoise = Denoise()
    found = fast_guidance(denoise, CONDITIONS, NULL, 3.0)(X_T, T)
    torch.testing.assert_close(found, NONE + 3.0 * (ALL - NONE))
    assert denoise.batches == [2 * B]


def test_fast_at_one_is_the_conditional_call_alone() -> None:
    denoise = Denoise()
    torch.testing.assert_close(fast_guidance(denoise, CONDITIONS, NULL, 1.0)(X_T, T), ALL)
    assert denoise.batches == [B]


def test_fast_at_zero_is_the_null_call_alone() -> None:
    denoise = Denoise()
    torch.testing.assert_close(fast_guidance(denoise, CONDITIONS, NULL, 0.0)(X_T, T), NONE)
    assert denoise.batches == [B]


def test_fast_takes_a_scale_per_image() -> None:
    found = fast_guidance(Denoise(), CONDITIONS, NULL, torch.tensor([0.0, 1.0]))(X_T, T)
    torch.testing.assert_close(found, torch.stack([NONE[0], ALL[1]]))


def test_full_sets_each_condition_alone_against_null() -> None:
    denoise = Denoise()
    scales = {"text": 1.5, "segments": 3.0, "image_embed": 0.5}
    found = full_guidance(denoise, CONDITIONS, NULL, scales)(X_T, T)
    deltas = [branch(**{name: True}) - NONE for name in scales]
    expected = NONE + sum(s * d for s, d in zip(scales.values(), deltas, strict=True))
    torch.testing.assert_close(found, expected)
    assert denoise.batches == [4 * B]


def test_full_leaves_unnamed_and_unscaled_conditions_null() -> None:
    denoise = Denoise()
    scales = {"text": 0.0, "segments": 3.0}
    found = full_guidance(denoise, CONDITIONS, NULL, scales)(X_T, T)
    torch.testing.assert_close(found, NONE + 3.0 * (branch(segments=True) - NONE))
    assert denoise.batches == [2 * B]


def test_full_without_scales_is_the_null_call_alone() -> None:
    for scales in ({}, {"text": 0.0}):
        denoise = Denoise()
        torch.testing.assert_close(full_guidance(denoise, CONDITIONS, NULL, scales)(X_T, T), NONE)
        assert denoise.batches == [B]


def test_full_with_one_condition_is_fast() -> None:
    null_segments = ST.where(torch.zeros(B, dtype=torch.bool))
    text_only = Conditions(TEXT, null_segments, NULL.image_embed.expand(B, -1))
    fast = fast_guidance(Denoise(), text_only, NULL, 2.5, rescale=0.7)(X_T, T)
    full = full_guidance(Denoise(), CONDITIONS, NULL, {"text": 2.5}, rescale=0.7)(X_T, T)
    torch.testing.assert_close(full, fast)


def test_full_forgets_the_order_of_conditions() -> None:
    one = full_guidance(Denoise(), CONDITIONS, NULL, {"text": 1.5, "segments": 3.0})(X_T, T)
    other = full_guidance(Denoise(), CONDITIONS, NULL, {"segments": 3.0, "text": 1.5})(X_T, T)
    torch.testing.assert_close(one, other)


def test_full_is_linear_in_its_scales() -> None:
    def shift(**scales: float) -> torch.Tensor:
        return full_guidance(Denoise(), CONDITIONS, NULL, scales)(X_T, T) - NONE

    expected = 2 * shift(text=1.5) + shift(segments=4.0) / 2
    torch.testing.assert_close(shift(text=3.0, segments=2.0), expected)


def test_full_refuses_unknown_and_absent_names() -> None:
    with pytest.raises(ValueError, match=r"scales: expected names among text.*got 'mask'"):
        full_guidance(Denoise(), CONDITIONS, NULL, {"mask": 1.0})
    with pytest.raises(ValueError, match="scales: 'image_embed' was given"):
        full_guidance(Denoise(), draw(B, 0, image_embed=False), NULL, {"image_embed": 1.0})
