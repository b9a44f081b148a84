"""Guidance with scales per image, rescaling, strengths, learned variances and an interval."""

import pytest
import torch

from branches import ALL, CONDITIONS, NONE, NULL, SIZE, X_T, B, Denoise, T, branch
from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.diffusion import PredictionType, prediction_target, to_x_0
from spatext.modules.functional.guidance import (
    combine,
    fast_guidance,
    full_guidance,
    guidance_rescale,
    interval_guidance,
    unguided,
)


@pytest.mark.parametrize("name", ["v_prediction", "sample"])
def test_means_the_same_under_every_parameterisation(name: PredictionType) -> None:
    a = torch.tensor([0.3, 0.8], dtype=torch.float64)

    def denoise(x_t: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        eps, a_t = Denoise()(x_t, t, conditions), a.repeat(len(x_t) // B)
        return prediction_target(to_x_0(eps, x_t, a_t, "epsilon"), eps, a_t, name)

    scales = {"text": 1.5, "segments": 3.0}
    for guided, reference in [
        (
            full_guidance(denoise, CONDITIONS, NULL, scales),
            full_guidance(Denoise(), CONDITIONS, NULL, scales),
        ),
        (
            fast_guidance(denoise, CONDITIONS, NULL, 3.0),
            fast_guidance(Denoise(), CONDITIONS, NULL, 3.0),
        ),
    ]:
        expected = to_x_0(reference(X_T, T), X_T, a, "epsilon")
        torch.testing.assert_close(to_x_0(guided(X_T, T), X_T, a, name), expected)


def test_rescale_brings_back_the_std_of_the_conditional_branch() -> None:
    guided = NONE + 7.0 * (ALL - NONE)
    full = guidance_rescale(guided, ALL, 1.0)
    torch.testing.assert_close(full.flatten(1).std(1), ALL.flatten(1).std(1))
    torch.testing.assert_close(guidance_rescale(guided, ALL, 0.0), guided)
    found = guidance_rescale(guided, ALL, 0.7)
    torch.testing.assert_close(found, 0.7 * full + 0.3 * guided)
    fast = fast_guidance(Denoise(), CONDITIONS, NULL, 7.0, rescale=0.7)(X_T, T)
    torch.testing.assert_close(fast, found)


def test_rescale_at_scale_zero_still_compares_with_the_conditional_branch() -> None:
    found = fast_guidance(Denoise(), CONDITIONS, NULL, 0.0, rescale=1.0)(X_T, T)
    torch.testing.assert_close(found, guidance_rescale(NONE, ALL, 1.0))


def test_full_rescale_compares_with_all_scales_one() -> None:
    scales = {"text": 4.0, "segments": 3.0}
    found = full_guidance(Denoise(), CONDITIONS, NULL, scales, rescale=0.7)(X_T, T)
    alone = [branch(text=True), branch(segments=True)]
    guided, reference = combine(NONE, alone, [4.0, 3.0]), combine(NONE, alone, [1.0, 1.0])
    torch.testing.assert_close(found, guidance_rescale(guided, reference, 0.7))


def test_a_learned_variance_is_not_guided() -> None:
    denoise = Denoise(learned_variance=True)
    found = fast_guidance(denoise, CONDITIONS, NULL, 3.0)(X_T, T)
    expected = torch.cat([NONE + 3.0 * (ALL - NONE), ALL.sin()], dim=1)
    torch.testing.assert_close(found, expected)
    found = full_guidance(denoise, CONDITIONS, NULL, {"text": 2.0, "segments": 3.0})(X_T, T)
    alone = [branch(text=True), branch(segments=True)]
    torch.testing.assert_close(found[:, 3:], (alone[0].sin() + alone[1].sin()) / 2)
    torch.testing.assert_close(found[:, :3], combine(NONE, alone, [2.0, 3.0]))


def test_full_takes_a_scale_per_image() -> None:
    denoise = Denoise()
    text, st = torch.tensor([0.0, 2.0]), torch.tensor([3.0, 0.0])
    found = full_guidance(denoise, CONDITIONS, NULL, {"text": text, "segments": st})(X_T, T)
    parts = [3.0 * (branch(segments=True) - NONE)[0], 2.0 * (branch(text=True) - NONE)[1]]
    torch.testing.assert_close(found, NONE + torch.stack(parts))
    assert denoise.batches == [3 * B]
    silent = {"text": torch.zeros(B), "segments": torch.zeros(B)}
    torch.testing.assert_close(full_guidance(denoise, CONDITIONS, NULL, silent)(X_T, T), NONE)
    assert denoise.batches[1:] == [B]


@pytest.mark.parametrize("learned_variance", [False, True])
def test_an_image_without_a_condition_does_not_know_it(learned_variance: bool) -> None:
    """Neither rescaling nor the variance depends on what other images are asked for."""
    scales = {
        "text": torch.tensor([2.0, 1.5]),
        "segments": torch.tensor([0.0, 3.0]),
        "image_embed": torch.tensor([0.0, 0.5]),
    }
    model = Denoise(learned_variance)
    found = full_guidance(model, CONDITIONS, NULL, scales, rescale=0.7)(X_T, T)
    for i in range(B):
        alone = {name: float(scale[i]) for name, scale in scales.items()}
        expected = full_guidance(model, CONDITIONS, NULL, alone, rescale=0.7)(X_T, T)
        torch.testing.assert_close(found[i], expected[i])


def test_strength_is_a_factor_per_cell() -> None:
    strength = torch.rand(B, 1, *SIZE, dtype=torch.float64)
    found = fast_guidance(Denoise(), CONDITIONS, NULL, 3.0, strength=strength)(X_T, T)
    torch.testing.assert_close(found, NONE + strength * 3.0 * (ALL - NONE))
    found = fast_guidance(Denoise(), CONDITIONS, NULL, 1.0, strength=strength)(X_T, T)
    torch.testing.assert_close(found, NONE + strength * (ALL - NONE))
    scales = {"text": 1.5, "segments": torch.tensor([3.0, 0.5], dtype=torch.float64)}
    found = full_guidance(Denoise(), CONDITIONS, NULL, scales, strength=strength)(X_T, T)
    plain = full_guidance(Denoise(), CONDITIONS, NULL, scales)(X_T, T)
    torch.testing.assert_close(found, NONE + strength * (plain - NONE))


def test_unguided_is_one_branch_of_what_has_a_scale() -> None:
    denoise = Denoise()
    on = torch.tensor([1.0, 0.0])
    found = unguided(denoise, CONDITIONS, NULL, {"text": 3.0, "segments": on})(X_T, T)
    expected = torch.stack([branch(text=True, segments=True)[0], branch(text=True)[1]])
    torch.testing.assert_close(found, expected)
    every = dict.fromkeys(CONDITIONS.names, 0.5)
    torch.testing.assert_close(unguided(denoise, CONDITIONS, NULL, every)(X_T, T), ALL)
    assert denoise.batches == [B, B]
    with pytest.raises(ValueError, match=r"^scales: expected names among .*, got 'colour'"):
        unguided(denoise, CONDITIONS, NULL, {"colour": 1.0})


def test_the_interval_has_its_ends() -> None:
    guided = interval_guidance(lambda x, _: x + 1, lambda x, _: x - 1, (0.25, 0.5), 1000)
    for t, shift in ((249, -1), (250, 1), (400, 1), (500, 1), (501, -1)):
        torch.testing.assert_close(guided(X_T, torch.tensor([t, t])), X_T + shift)
    torch.testing.assert_close(guided(X_T, torch.tensor([499.5, 499.5])), X_T + 1)
