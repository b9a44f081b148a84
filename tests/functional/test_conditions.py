import pytest
import torch
from scipy import stats

from spatext.modules.functional.conditions import NAMES, Conditions, drop_conditions
from spatext.modules.functional.st import Segments

DIM = 4


def make(batch: int, value: float = 1.0, num_segments: int = 2) -> Conditions:
    """Every number of every condition is `value`."""
    segments = Segments(
        torch.ones(batch, 4, 4, dtype=torch.uint8),
        torch.full((batch, num_segments, DIM), value),
        torch.ones(batch, num_segments, dtype=torch.bool),
    )
    return Conditions(torch.full((batch, 3, 5), value), segments, torch.full((batch, DIM), value))


def make_null() -> Conditions:
    null = make(1, value=-1.0)
    return Conditions(null.text, Segments.null(1, 2, DIM, (4, 4)), null.image_embed)


def dropped(conditions: Conditions) -> torch.Tensor:
    """[b, 3] bool in the order of NAMES, asserting that a condition is dropped whole or not."""
    assert conditions.image_embed is not None
    parts = [conditions.text == -1, ~conditions.segments.valid, conditions.image_embed == -1]
    flat = [part.flatten(1) for part in parts]
    assert all((f.all(1) | ~f.any(1)).all() for f in flat)
    return torch.stack([f.all(1) for f in flat], dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_where_replaces_one_condition_in_some_rows(name: str) -> None:
    keep = torch.tensor([True, False, True])
    expected = torch.zeros(3, 3, dtype=torch.bool)
    expected[1, NAMES.index(name)] = True
    assert dropped(make(3).where({name: keep}, make_null())).equal(expected)


def test_where_takes_a_null_of_the_whole_batch() -> None:
    null = make(2)
    null.text[1] = 7.0
    found = make(2, 3.0).where({"text": torch.tensor([True, False])}, null)
    torch.testing.assert_close(found.text[:, 0, 0], torch.tensor([3.0, 7.0]))


def test_where_keeps_the_dtype_of_the_conditions() -> None:
    low = make(2).to(dtype=torch.bfloat16)
    keep = torch.tensor([True, False])
    found = low.where({"text": keep, "image_embed": keep}, make_null())
    assert found.text.dtype == torch.bfloat16
    assert found.image_embed is not None
    assert found.image_embed.dtype == torch.bfloat16


def test_where_refuses_what_is_not_there() -> None:
    keep = torch.tensor([True])
    whole, bare = make(1), Conditions(make(1).text, make(1).segments)
    with pytest.raises(ValueError, match=r"keep: expected names among text, .* got 'mask'"):
        whole.where({"mask": keep}, make_null())
    with pytest.raises(ValueError, match="keep: 'image_embed' was given"):
        bare.where({"image_embed": keep}, make_null())
    with pytest.raises(ValueError, match="null: expected an image_embed"):
        whole.where({"image_embed": keep}, bare)


def test_cat_and_repeat() -> None:
    both = Conditions.cat([make(1, 1.0), make(2, 2.0, num_segments=3)])
    assert len(both) == 3
    assert both.text[:, 0, 0].tolist() == [1.0, 2.0, 2.0]
    assert both.segments.valid.sum(1).tolist() == [2, 3, 3]
    assert both.image_embed is not None
    assert both.image_embed[:, 0].tolist() == [1.0, 2.0, 2.0]
    assert both.repeat(2).text[:, 0, 0].tolist() == [1.0, 2.0, 2.0, 1.0, 2.0, 2.0]


def test_cat_refuses_a_part_with_image_embeds() -> None:
    with pytest.raises(ValueError, match="all of 2 conditions or in none, got 1"):
        Conditions.cat([make(1), Conditions(make(1).text, make(1).segments)])


def test_to_casts_every_floating_tensor() -> None:
    low = make(1).to(dtype=torch.bfloat16)
    assert low.image_embed is not None
    dtypes = {low.text.dtype, low.segments.embeds.dtype, low.image_embed.dtype}
    assert dtypes == {torch.bfloat16}


def test_rates_are_met() -> None:
    n, rates = 4000, {"text": 0.1, "segments": 0.3, "image_embed": 0.5}
    counts = dropped(drop_conditions(make(n), make_null(), rates, 1, torch.arange(n))).sum(0)
    for count, rate in zip(counts.tolist(), rates.values(), strict=True):
        low, high = stats.binom.interval(0.9999, n, rate)
        assert low <= count <= high


def test_coins_are_independent() -> None:
    n, p = 8000, 0.3
    out = drop_conditions(make(n), make_null(), dict.fromkeys(NAMES, p), 1, torch.arange(n))
    coins = dropped(out).long()
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        states = torch.bincount(coins[:, first] * 2 + coins[:, second], minlength=4)
        expected = [n * (1 - p) ** 2, n * (1 - p) * p, n * p * (1 - p), n * p**2]
        assert stats.chisquare(states.numpy(), expected).pvalue > 1e-4


def test_coins_belong_to_the_sample() -> None:
    rates, index = dict.fromkeys(NAMES, 0.5), torch.tensor([7, 2**33, 0, 19, 4])
    together = dropped(drop_conditions(make(5), make_null(), rates, 1, index))
    alone = [dropped(drop_conditions(make(1), make_null(), rates, 1, i[None])) for i in index]
    assert together.equal(torch.cat(alone))
    only_text = dropped(drop_conditions(make(5), make_null(), {"text": 0.5}, 1, index))
    assert only_text[:, 0].equal(together[:, 0])


def test_coins_depend_on_the_seed() -> None:
    rates, index = {"text": 0.5}, torch.arange(64)
    one, two = (dropped(drop_conditions(make(64), make_null(), rates, s, index)) for s in (1, 2))
    assert not one.equal(two)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 500)])
def test_the_ends_of_the_range_are_certain(rate: float, expected: int) -> None:
    rates = dict.fromkeys(NAMES, rate)
    out = drop_conditions(make(500), make_null(), rates, 1, torch.arange(500))
    assert dropped(out).sum(0).tolist() == [expected] * 3


def test_rates_of_an_absent_condition() -> None:
    bare, index = Conditions(make(1).text, make(1).segments), torch.tensor([0])
    out = drop_conditions(bare, make_null(), {"image_embed": 0.0}, 1, index)
    assert out.image_embed is None
    with pytest.raises(ValueError, match="rates: 'image_embed' was given"):
        drop_conditions(bare, make_null(), {"image_embed": 0.1}, 1, index)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_bad_rates(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rates.text: expected a number in \[0, 1\]"):
        drop_conditions(make(1), make_null(), {"text": rate}, 1, torch.tensor([0]))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_unknown_names(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rates: expected names among text.*got 'txt'"):
        drop_conditions(make(1), make_null(), {"txt": rate}, 1, torch.tensor([0]))
