import numpy as np
import pytest
import torch
from scipy import stats

from spatext.modules.functional.random import (
    Purpose,
    derive_seeds,
    normal,
    philox_4x32,
    randint,
    uniform,
)

# Random123, tests/kat_vectors, philox4x32 10: counter, key, output.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
INDEX = torch.arange(5000)


def words(text: str) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in text.split()])


def test_philox_known_answers() -> None:
    columns = zip(*KNOWN_ANSWERS, strict=True)
    counters, keys, answers = (torch.stack([*map(words, column)]) for column in columns)
    torch.testing.assert_close(philox_4x32(counters, keys), answers, rtol=0, atol=0)


def test_philox_key_broadcasts() -> None:
    counters = torch.arange(24).reshape(2, 3, 4)
    key = torch.tensor([7, 8])
    expected = philox_4x32(counters, key.expand(2, 3, 2))
    torch.testing.assert_close(philox_4x32(counters, key.view(1, 1, 2)), expected, rtol=0, atol=0)


def test_draws_are_the_words_of_their_address() -> None:
    # The layout is part of every recorded run: counter (block, purpose, index low, index high).
    seed, purpose, index = 3 + (5 << 32), Purpose.POSTERIOR, 11 + (13 << 32)
    words = philox_4x32(torch.tensor([[1, int(purpose), 11, 13]]), torch.tensor([[3, 5]]))
    found = uniform(seed, purpose, torch.tensor([index]), (7,))[:, 6]  # block 1, word 2
    torch.testing.assert_close(found, (words[:, 2] >> 8) / 2.0**24, rtol=0, atol=0)
    words = philox_4x32(torch.tensor([[0, int(purpose), 11, 13]]), torch.tensor([[3, 5]]))
    found = randint(seed, purpose, torch.tensor([index]), 1000)
    torch.testing.assert_close(found, words[:, 0] * 1000 // 2**32, rtol=0, atol=0)


def test_purposes_are_never_renumbered() -> None:
    assert {p.name: p.value for p in Purpose} == {
        "TIMESTEP": 1,
        "NOISE": 2,
        "POSTERIOR": 3,
        "DROP_TEXT": 4,
        "DROP_SEGMENTS": 5,
        "DROP_IMAGE_EMBED": 6,
        "INITIAL_NOISE": 7,
        "REGION_SEED": 8,
        "CANDIDATE_SEED": 9,
        "OFFSET_NOISE": 10,
        "IMAGE_SEED": 11,
        "STAGE_SEED": 12,
        "CROP": 13,
        "LOW_RES_LEVEL": 14,
        "LOW_RES_NOISE": 15,
    }


@pytest.mark.parametrize("draw", [uniform, normal])
def test_rows_do_not_depend_on_the_batch(draw) -> None:
    index = torch.tensor([5, 0, 2**40 + 3, 5])
    whole = draw(9, Purpose.NOISE, index, (3, 5))
    alone = torch.cat([draw(9, Purpose.NOISE, i[None], (3, 5)) for i in index])
    torch.testing.assert_close(whole, alone, rtol=0, atol=0)
    torch.testing.assert_close(whole[0], whole[3], rtol=0, atol=0)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_values_do_not_depend_on_the_shape_around_them(draw) -> None:
    long = draw(9, Purpose.NOISE, INDEX[:4], (37,))
    torch.testing.assert_close(draw(9, Purpose.NOISE, INDEX[:4], (6,)), long[:, :6], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("seed", "purpose", "shift"),
    [
        (2, Purpose.NOISE, 0),
        (1 + 2**32, Purpose.NOISE, 0),
        (-1, Purpose.NOISE, 0),
        (1, Purpose.TIMESTEP, 0),
        (1, Purpose.NOISE, 1),
        (1, Purpose.NOISE, 2**32),
    ],
)
def test_other_addresses_are_independent(seed: int, purpose: Purpose, shift: int) -> None:
    base = normal(1, Purpose.NOISE, INDEX, (4,)).flatten().numpy()
    other = normal(seed, purpose, INDEX + shift, (4,)).flatten().numpy()
    assert abs(np.corrcoef(base, other)[0, 1]) < 4 / len(base) ** 0.5


def test_uniform_distribution() -> None:
    x = uniform(1, Purpose.NOISE, INDEX, (8,)).flatten().numpy()
    assert x.min() >= 0.0
    assert x.max() < 1.0
    assert stats.kstest(x, "uniform").pvalue > 1e-3


def test_normal_distribution() -> None:
    x = normal(1, Purpose.NOISE, INDEX, (8,)).flatten().double().numpy()
    assert np.isfinite(x).all()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    np.testing.assert_allclose(
        [x.mean(), x.var(), stats.skew(x), stats.kurtosis(x)],
        [0, 1, 0, 0],
        atol=4 * (24 / len(x)) ** 0.5,
    )


@pytest.mark.parametrize("draw", [uniform, normal])
def test_neighbours_are_uncorrelated(draw) -> None:
    x = draw(1, Purpose.NOISE, INDEX, (8,)).numpy()
    correlations = np.corrcoef(x, rowvar=False)[np.triu_indices(8, 1)]
    between_rows = [np.corrcoef(x[:-1, i], x[1:, i])[0, 1] for i in range(8)]
    assert np.abs([*correlations, *between_rows]).max() < 4.5 / len(x) ** 0.5


def test_both_normals_of_a_pair_are_free_in_their_square() -> None:
    # cos and sin of the wrong angle stay uncorrelated, but their squares do not.
    x = normal(1, Purpose.NOISE, INDEX, (8,)).double().square().numpy()
    correlations = np.corrcoef(x, rowvar=False)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 4.5 / len(x) ** 0.5


def test_randint_covers_its_range_evenly() -> None:
    x = randint(1, Purpose.TIMESTEP, INDEX, 10)
    assert stats.chisquare(torch.bincount(x, minlength=10).numpy()).pvalue > 1e-3
    assert len(torch.bincount(x)) == 10


def test_randint_reaches_both_ends_of_a_large_range() -> None:
    x = randint(1, Purpose.TIMESTEP, INDEX, 2**31)
    assert 0 <= x.min() < 2**31 / 1000
    assert 2**31 * 0.999 < x.max() < 2**31


@pytest.mark.parametrize("high", [0, 2**31 + 1])
def test_randint_refuses_its_range(high: int) -> None:
    with pytest.raises(ValueError, match=rf"high.*got {high}"):
        randint(1, Purpose.TIMESTEP, INDEX, high)


def test_scalar_shape_is_one_number_a_row() -> None:
    assert uniform(1, Purpose.NOISE, INDEX).shape == INDEX.shape
    assert normal(1, Purpose.NOISE, INDEX).shape == INDEX.shape


def test_derived_seeds_are_the_words_of_their_address() -> None:
    seeds = torch.tensor([11 + (13 << 32), -1])
    found = derive_seeds(seeds, Purpose.REGION_SEED, 3)
    for row, (low, high) in enumerate(((11, 13), (2**32 - 1, 2**32 - 1))):
        counters = torch.tensor([[block, Purpose.REGION_SEED, low, high] for block in (0, 1)])
        pairs = philox_4x32(counters, torch.zeros(1, 2, dtype=torch.long)).reshape(4, 2)
        expected = [(int(a) >> 1) * 2**32 + int(b) for a, b in pairs]
        assert found[row].tolist() == expected[:3]


def test_derived_seeds_are_of_their_part_alone() -> None:
    seeds = torch.arange(-500, 500)
    found = derive_seeds(seeds, Purpose.REGION_SEED, 5)
    assert torch.equal(derive_seeds(seeds[7:9], Purpose.REGION_SEED, 2), found[7:9, :2])
    others = derive_seeds(seeds, Purpose.CANDIDATE_SEED, 5)
    every = torch.cat([found, others]).flatten()
    assert len(every.unique()) == len(every)
    assert every.min() >= 0
    assert every.max() > 2**62
