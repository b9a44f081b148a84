import pytest

from spatext.callbacks.spikes import SpikeDetector


def filled(*losses: float, **options: float) -> SpikeDetector:
    spikes = SpikeDetector(**({"window": 5, "factor": 3.0, "warmup": 3} | options))
    for loss in losses:
        spikes.add(loss)
    return spikes


def test_the_bound_is_median_and_deviation_of_the_window() -> None:
    # Of 1, 2, 4, 7, 11: median 4, deviations 3, 2, 0, 3, 7 with median 3.
    assert filled(100.0, 1.0, 2.0, 4.0, 7.0, 11.0).bound() == 4 + 3 * 3


def test_one_loss_hardly_moves_the_bound() -> None:
    assert filled(1.0, 2.0, 3.0, 4.0, 1e9).bound() == 3 + 3 * 1


def test_nothing_stands_out_at_first_or_among_equals() -> None:
    assert filled(1.0, 2.0).bound() == float("inf")
    assert filled(1.0, 2.0, 3.0).bound() == 2 + 3 * 1
    assert filled(2.0, 2.0, 2.0, 2.0, 5.0).bound() == float("inf")


def test_its_state_is_plain_and_comes_back() -> None:
    spikes, again = filled(1.0, 2.0, 4.0, 7.0, 11.0, 3.0), filled()
    again.load_state_dict(spikes.state_dict())
    assert spikes.state_dict() == {"num_seen": 6, "losses": [2, 4, 7, 11, 3]}
    assert again.bound() == spikes.bound()
    again.add(5.0)
    assert again.state_dict() == {"num_seen": 7, "losses": [4, 7, 11, 3, 5]}


@pytest.mark.parametrize("options", [{"window": 1}, {"factor": 0.0}, {"warmup": -1}])
def test_wrong_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^callbacks.finite.spike: found .*, expected window"):
        filled(**options)
