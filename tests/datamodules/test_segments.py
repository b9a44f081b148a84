import numpy as np
import pytest

from spatext.datamodules.segments import choose_segments, eligible_segments, relabel, segment_areas

# areas of 20 pixels: void 4, 7 -> 8, 300 -> 7, 9 -> 1
IDS = np.array(
    [[0, 0, 7, 7, 7], [0, 7, 7, 7, 7], [0, 7, 300, 300, 300], [9, 300, 300, 300, 300]],
    dtype=np.int32,
)
INFO = {7: {"isthing": True}, 300: {"isthing": False}}


def test_areas_leave_void_out() -> None:
    assert segment_areas(IDS) == {7: 8, 9: 1, 300: 7}


@pytest.mark.parametrize(
    ("min_area", "expected"),
    [(0.0, [7, 9, 300]), (0.05, [7, 9, 300]), (0.06, [7, 300]), (0.4, [7]), (0.41, [])],
)
def test_min_area_is_a_share_of_the_whole_image(min_area: float, expected: list[int]) -> None:
    assert eligible_segments(IDS, min_area=min_area) == expected


def test_things_and_stuff_switch_by_what_is_known() -> None:
    assert eligible_segments(IDS, INFO, min_area=0.0, things=False) == [300]
    assert eligible_segments(IDS, INFO, min_area=0.0, stuff=False) == [7]
    assert eligible_segments(IDS, INFO, min_area=0.0) == [7, 9, 300]
    assert eligible_segments(IDS, None, min_area=0.0, stuff=False) == []


def test_k_is_uniform_and_never_exceeds_those_present() -> None:
    rng = np.random.default_rng(0)
    eligible = [3, 5, 8, 13, 21]
    chosen = [choose_segments(eligible, rng, k_min=1, k_max=3) for _ in range(3000)]
    assert all(len(set(c)) == len(c) and set(c) <= set(eligible) for c in chosen)
    sizes = np.bincount([len(c) for c in chosen], minlength=4)
    np.testing.assert_allclose(sizes / 3000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.03)
    firsts = np.bincount([c[0] for c in chosen])[eligible]  # order is random, too
    np.testing.assert_allclose(firsts / 3000, 0.2, atol=0.03)
    assert sorted(choose_segments([4, 2], rng, k_min=3, k_max=3)) == [2, 4]
    assert choose_segments([], rng) == []


def test_relabel_numbers_slots_from_one() -> None:
    expected = np.array(
        [[0, 0, 2, 2, 2], [0, 2, 2, 2, 2], [0, 2, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=np.uint8
    )
    labels = relabel(IDS, [300, 7])
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)
