import pytest
import torch

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.diffusion import to_eps, to_v, to_x_0
from spatext.modules.functional.guidance import (
    combine,
    fast_guidance,
    full_guidance,
    guidance_rescale,
    interval_guidance,
    unguided,
)
from spatext.modules.functional.st import Segments, st_map

B, SIZE = 2, (4, 4)


def draw(batch: int, seed: int, image_embed: bool = True) -> Conditions:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    segments = Segments(
        torch.randint(0, 3, (batch, 8, 8), generator=generator, dtype=torch.uint8),
        torch.randn(batch, 2, 3, **options),
        torch.ones(batch, 2, dtype=torch.bool),
    )
    text = torch.randn(batch, 5, 3, **options)
    return Conditions(text, segments, torch.randn(batch, 3, **options) if image_embed else None)


CONDITIONS = draw(B, 0)
NULL = Conditions(
    draw(1, 1).text,
    Segments.null(1, 2, 3, SIZE, dtype=torch.float64),
    torch.zeros(1, 3, dtype=torch.float64),
)
X_T = torch.randn(B, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
T = torch.tensor([3, 900])
TEXT, ST, IMAGE = CONDITIONS.text, CONDITIONS.segments, CONDITIONS.image_embed


class Denoise:
    """A nonlinear function of all it is given, so that conditions interact; it counts its calls."""

    def __init__(self, learned_variance: bool = False) -> None:
        self.batches: list[int] = []
        self.learned_variance = learned_variance

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        assert len(x_t) == len(t) == len(conditions)
        self.batches.append(len(x_t))
        return self.of(x_t, t, conditions.text, conditions.segments, conditions.image_embed)

    def of(self, x_t, t, text, segments, image_embed) -> torch.Tensor:
        text = text.mean(1)[..., None, None].expand(len(x_t), -1, -1, -1)
        st = st_map(segments, SIZE)
        image = image_embed[..., None, None]
        eps = torch.tanh(x_t + text + 2 * st * text + image * st + 0.001 * t.view(-1, 1, 1, 1))
        return torch.cat([eps, eps.sin()], dim=1) if self.learned_variance else eps


def branch(text: bool = False, segments: bool = False, image_embed: bool = False) -> torch.Tensor:
    """The prediction with the named conditions alone, built without the code under test."""
    null = Segments.null(B, 2, 3, SIZE, dtype=torch.float64)
    assert IMAGE is not None
    return Denoise().of(
        X_T,
        T,
        TEXT if text else NULL.text.expand(B, -1, -1),
        ST if segments else null,
        IMAGE if image_embed else torch.zeros_like(IMAGE),
    )


NONE, ALL = branch(), branch(True, True, True)


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


@pytest.mark.parametrize("convert", [to_v, to_x_0])
def test_means_the_same_under_every_parameterisation(convert) -> None:
    a = torch.tensor([0.3, 0.8], dtype=torch.float64)
    name = {to_v: "v_prediction", to_x_0: "sample"}[convert]

    def denoise(x_t: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        eps = Denoise()(x_t, t, conditions)
        return convert(eps, x_t, a.repeat(len(x_t) // B), "epsilon")

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
        torch.testing.assert_close(to_eps(guided(X_T, T), X_T, a, name), reference(X_T, T))


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
