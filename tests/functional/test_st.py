import pytest
import torch

from spatext.modules.functional.st import Segments, one_hot, reduce_ids, st_map


def painted(*rows: str) -> torch.Tensor:
    return torch.tensor([[[int(c) for c in row] for row in rows]], dtype=torch.uint8)


def all_valid(num_segments: int, batch: int = 1) -> torch.Tensor:
    return torch.ones(batch, num_segments, dtype=torch.bool)


def blobs(b: int, k: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, k + 1, (b, h, w), generator=generator, dtype=torch.uint8)


def random_segments(b: int = 3, k: int = 4, d: int = 5, size: int = 12) -> Segments:
    torch.manual_seed(0)
    return Segments(blobs(b, k, size, size), torch.randn(b, k, d), torch.rand(b, k) > 0.3)


def test_majority_by_area() -> None:
    ids = painted("1122", "1002", "3330", "3000")
    assert reduce_ids(ids, all_valid(3), (2, 2)).tolist() == [[[1, 2], [3, 0]]]


def test_ties_go_to_the_lowest_id() -> None:
    # Both segments own another cell, so that only the vote decides.
    ids = painted("12221", "12221")[..., :4]
    assert reduce_ids(ids, all_valid(2), (1, 2)).tolist() == [[[1, 2]]]
    assert reduce_ids(painted("0111", "0111"), all_valid(1), (1, 2)).tolist() == [[[0, 1]]]


def test_fractional_ratio_votes_by_true_area() -> None:
    # Cells of 2.5 pixels: the second holds half of a 0, a 1 and a 2. Counted in full, the 0 ties.
    assert reduce_ids(painted("1101222222"), all_valid(2), (1, 4)).tolist() == [[[1, 1, 2, 2]]]


@pytest.mark.parametrize("size", [(5, 7), (4, 3), (9, 11), (6, 5)])
def test_fractional_ratio_is_the_integer_vote_on_a_common_grid(size: tuple[int, int]) -> None:
    ids = blobs(2, 3, 8, 9)
    fine = ids.repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)
    expected = reduce_ids(fine, all_valid(3, 2), size)
    torch.testing.assert_close(reduce_ids(ids, all_valid(3, 2), size), expected)


def test_enlarging_by_a_whole_number_is_nearest() -> None:
    ids = blobs(2, 3, 4, 5)
    expected = ids.repeat_interleave(3, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(reduce_ids(ids, all_valid(3, 2), (12, 10)), expected)


def test_same_size_changes_nothing() -> None:
    ids = blobs(2, 3, 4, 5)
    torch.testing.assert_close(reduce_ids(ids, all_valid(3, 2), (4, 5)), ids)


@pytest.mark.parametrize("size", [(4, 4), (2, 2), (3, 3), (8, 8)])
def test_invalid_ids_are_background(size: tuple[int, int]) -> None:
    ids, valid = blobs(2, 3, 4, 4), torch.tensor([[True, False, True], [False, False, False]])
    without = ids.clone()
    without[0][ids[0] == 2] = 0
    without[1] = 0
    torch.testing.assert_close(reduce_ids(ids, valid, size), reduce_ids(without, valid, size))
    assert 2 not in reduce_ids(ids, valid, size)[0]
    assert reduce_ids(ids, valid, size)[1].count_nonzero() == 0


def test_ids_above_the_last_slot_are_background() -> None:
    for size in [(1, 2), (2, 4)]:
        assert 3 not in reduce_ids(painted("3331", "3331"), all_valid(2), size)


def test_a_thin_segment_keeps_the_cell_it_covers_most_of() -> None:
    ids = painted("00000000", "00000010", "00000110", "00000000")
    assert reduce_ids(ids, all_valid(1), (1, 2)).tolist() == [[[0, 1]]]
    column = torch.zeros(1, 64, 64, dtype=torch.uint8)
    column[:, 10:50, 33] = 1
    reduced = reduce_ids(column, all_valid(1), (16, 16))
    assert reduced.count_nonzero() == 1
    assert reduced[0, 3:12, 8].count_nonzero() == 1  # rows 3..11 are covered in full


def test_thin_segments_take_cells_from_a_large_one_and_not_from_each_other() -> None:
    # 2 and 3 lose every vote to 1, and touch only the second cell.
    ids = painted("111123111111", "111111111111")
    assert reduce_ids(ids, all_valid(3), (1, 3)).tolist() == [[[3, 2, 1]]]


def test_the_only_cell_of_a_segment_is_not_taken() -> None:
    # 2 touches only the one cell of 1, and takes the nearest other: the background beside it.
    ids = painted("0000111200000000", "0000111100000000")
    assert reduce_ids(ids, all_valid(2), (1, 4)).tolist() == [[[2, 1, 0, 0]]]


def test_the_smallest_chooses_first() -> None:
    # 3 (1 pixel) touches only the first cell, 2 (2 pixels) both; 1 wins both votes and more.
    ids = painted("1123112111111111", "1111111111111111")
    assert reduce_ids(ids, all_valid(3), (1, 4)).tolist() == [[[3, 2, 1, 1]]]


def test_slots_may_be_permuted() -> None:
    ids = painted("1123112111111111", "1111111111111111")
    permuted = torch.tensor([0, 3, 1, 2], dtype=torch.uint8)
    found = reduce_ids(permuted[ids.long()], all_valid(3), (1, 4))
    assert found.tolist() == permuted[reduce_ids(ids, all_valid(3), (1, 4)).long()].tolist()


@pytest.mark.parametrize("size", [(2, 3), (3, 3), (4, 4), (5, 3)])
def test_every_valid_segment_survives(size: tuple[int, int]) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        k = 6
        ids = torch.zeros(4, 12, 12, dtype=torch.uint8)
        ids[:, 2:9, 1:8] = 1
        for slot in range(2, k + 1):  # two pixels each, crowded into one corner
            i, j = torch.randint(0, 4, (2, 2, 4))
            ids[torch.arange(4), i, j] = slot
        valid = torch.rand(4, k) > 0.2
        reduced = reduce_ids(ids, valid, size)
        for before, after, ok in zip(ids, reduced, valid, strict=True):
            expected = {s for s in before.unique().tolist() if s and ok[s - 1]}
            assert set(after.unique().tolist()) - {0} == expected


def test_with_more_segments_than_cells_the_vote_stands() -> None:
    # 2 is the largest of the three, and loses both votes.
    assert reduce_ids(painted("1112233322"), all_valid(3), (1, 2)).tolist() == [[[1, 3]]]


def test_an_absent_segment_gets_no_cell() -> None:
    assert 2 not in reduce_ids(blobs(3, 1, 8, 8), all_valid(3, 3), (2, 2))


def test_one_sample_does_not_depend_on_the_others() -> None:
    segments = random_segments(b=6)
    together = reduce_ids(segments.ids, segments.valid, (5, 4))
    alone = [
        reduce_ids(segments.ids[i : i + 1], segments.valid[i : i + 1], (5, 4)) for i in range(6)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_one_hot() -> None:
    expected = torch.tensor([[[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    torch.testing.assert_close(one_hot(painted("012"), 2), expected)


@pytest.mark.parametrize("size", [(12, 12), (4, 4), (5, 7), (24, 24)])
def test_st_is_the_embedding_in_each_cell_and_zero_elsewhere(size: tuple[int, int]) -> None:
    segments = random_segments()
    st, ids = st_map(segments, size), reduce_ids(segments.ids, segments.valid, size)
    for b in range(len(segments)):
        for i in range(size[0]):
            for j in range(size[1]):
                slot = int(ids[b, i, j])
                expected = segments.embeds[b, slot - 1] if slot else torch.zeros(5)
                assert st[b, :, i, j].equal(expected)


@pytest.mark.parametrize("size", [(6, 6), (4, 3), (5, 7), (24, 24), (17, 12)])
def test_st_by_area_is_the_mean_of_the_full_map_over_each_cell(size: tuple[int, int]) -> None:
    segments = random_segments()
    segments = Segments(segments.ids, segments.embeds.double(), segments.valid)
    full = st_map(segments, (12, 12))
    # Exact for any ratio: copy every pixel until cells hold whole ones, then average.
    fine = full.repeat_interleave(size[0], 2).repeat_interleave(size[1], 3)
    expected = torch.nn.functional.avg_pool2d(fine, 12)
    torch.testing.assert_close(st_map(segments, size, "area"), expected)


def test_both_ways_are_one_where_nothing_is_reduced() -> None:
    segments = random_segments()
    torch.testing.assert_close(st_map(segments, (12, 12), "area"), st_map(segments, (12, 12)))
    difference = st_map(segments, (4, 4), "area") - st_map(segments, (4, 4))
    assert difference.abs().max() > 0.1


def test_st_forgets_the_order_of_slots() -> None:
    segments = random_segments()
    order = torch.tensor([2, 0, 3, 1])
    number = torch.zeros(5, dtype=torch.uint8)
    number[order + 1] = torch.arange(1, 5, dtype=torch.uint8)
    permuted = Segments(
        number[segments.ids.long()], segments.embeds[:, order], segments.valid[:, order]
    )
    torch.testing.assert_close(st_map(permuted, (12, 12)), st_map(segments, (12, 12)))


def test_invalid_slots_leave_no_trace() -> None:
    segments = random_segments()
    embeds = torch.where(segments.valid[..., None], segments.embeds, torch.nan)
    spoilt = Segments(segments.ids, embeds, segments.valid)
    torch.testing.assert_close(st_map(spoilt, (4, 4)), st_map(segments, (4, 4)))


def test_gradient_of_st_counts_the_cells() -> None:
    segments = random_segments()
    embeds = segments.embeds.clone().requires_grad_()
    st_map(Segments(segments.ids, embeds, segments.valid), (4, 4)).sum().backward()
    cells = one_hot(reduce_ids(segments.ids, segments.valid, (4, 4)), 4).sum((2, 3))
    torch.testing.assert_close(embeds.grad, cells[..., None].expand(-1, -1, 5))


def test_where_makes_rows_null() -> None:
    segments = random_segments()
    st = st_map(segments.where(torch.tensor([True, False, True])), (4, 4))
    assert st[1].count_nonzero() == 0
    torch.testing.assert_close(st[::2], st_map(segments, (4, 4))[::2])


def test_null_is_zero() -> None:
    null = Segments.null(2, 3, 5, (8, 8))
    assert len(null) == 2
    torch.testing.assert_close(st_map(null, (4, 4)), torch.zeros(2, 5, 4, 4))


def test_cat_fills_up_slots() -> None:
    few, many = random_segments(k=2), random_segments(k=4)
    both = Segments.cat([few, many])
    assert both.valid.shape == (6, 4)
    expected = torch.cat([st_map(few, (4, 4)), st_map(many, (4, 4))])
    torch.testing.assert_close(st_map(both, (4, 4)), expected)


def test_repeat_tiles_the_batch() -> None:
    segments = random_segments()
    st = st_map(segments, (4, 4))
    torch.testing.assert_close(st_map(segments.repeat(2), (4, 4)), st.repeat(2, 1, 1, 1))


def test_to_casts_the_embeds_alone() -> None:
    moved = random_segments().to(dtype=torch.bfloat16)
    dtypes = (moved.ids.dtype, moved.embeds.dtype, moved.valid.dtype)
    assert dtypes == (torch.uint8, torch.bfloat16, torch.bool)
