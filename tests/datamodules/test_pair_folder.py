import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

from pair_folders import NUM, WIDTH, make_rows, write_folder, write_rows
from spatext.datamodules.pair_files import PairRows
from spatext.datamodules.pair_folder import Pairs, allow_open_files

ROWS = {
    "in order": np.arange(NUM),
    "anyhow": np.array([39, 0, 13, 13, 7, 6, 20, 19, 38, 0]),
    "of one shard": np.array([8, 7]),
    "none": np.array([], dtype=np.int64),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_are_what_was_written(written: tuple[Path, PairRows], rows: np.ndarray) -> None:
    folder, expected = written
    pairs = Pairs(folder)
    assert len(pairs) == NUM
    embeds = pairs.image_embeds(rows)
    assert embeds.dtype == np.float32
    stored = expected.image_embeds.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(embeds, stored[rows])
    np.testing.assert_array_equal(pairs.is_region(rows), expected.is_region[rows])
    assert pairs.texts(rows) == [expected.texts[row] for row in rows]
    assert pairs.keys(rows) == [expected.keys[row] for row in rows]


def test_texts_of_the_world_survive(tmp_path: Path) -> None:
    """Among them an empty one between others, and an image without any."""
    texts = [
        "",
        "ein gr\u00fcnes Dreieck",
        "",
        "\u8d64\u3044\u4e38",
        "\U0001f415\u200d\U0001f9ba",
        "a\u0301\u2028b",
        "",
    ]
    rows = PairRows(np.zeros((7, WIDTH), np.float32), np.zeros(7, np.bool_), texts, list("abcdefg"))
    write_rows(tmp_path, "s", rows)
    assert Pairs(tmp_path).texts(np.arange(7)) == texts
    empty = PairRows(rows.image_embeds, rows.is_region, [""] * 7, rows.keys)
    write_rows(tmp_path, "s", empty)
    assert Pairs(tmp_path).texts(np.arange(7)) == [""] * 7


@pytest.mark.parametrize("rows", [[NUM], [-1], [0, NUM + 5]])
def test_rows_that_are_not_there_are_refused(
    written: tuple[Path, PairRows], rows: list[int]
) -> None:
    with pytest.raises(IndexError, match="holds 40 pairs"):
        Pairs(written[0]).image_embeds(np.array(rows))


def test_files_are_mapped_and_travel_as_their_folder(written: tuple[Path, PairRows]) -> None:
    pairs = Pairs(written[0])
    assert all(isinstance(shard.image_embeds, np.memmap) for shard in pairs.shards)
    assert not pairs.shards[0].image_embeds.flags.writeable
    data = pickle.dumps(pairs)
    assert len(data) < 300
    rows = np.arange(NUM)[::-1].copy()
    np.testing.assert_array_equal(pickle.loads(data).image_embeds(rows), pairs.image_embeds(rows))


def test_statistics_are_those_of_numpy(written: tuple[Path, PairRows]) -> None:
    folder, expected = written
    x = expected.image_embeds.astype(np.float16).astype(np.float64)
    mean, std = Pairs(folder).statistics()
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, x.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_statistics_of_a_mixture_weigh_its_kinds(
    written: tuple[Path, PairRows], share: float
) -> None:
    folder, expected = written
    x = expected.image_embeds.astype(np.float16).astype(np.float64)
    region = expected.is_region
    weights = np.where(region, share / region.sum(), (1 - share) / (~region).sum())
    mean = weights @ x
    found_mean, found_std = Pairs(folder).statistics(share)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found_std, np.sqrt(weights @ (x - mean) ** 2), rtol=1e-6)


def test_statistics_of_a_kind_that_is_not_there_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, "s", make_rows("s", 6, share=0))
    Pairs(tmp_path).statistics(0.0)
    with pytest.raises(ValueError, match="6 image and 0 region pairs, expected some of both"):
        Pairs(tmp_path).statistics(0.5)


def test_sums_do_not_depend_on_how_they_are_taken(tmp_path: Path) -> None:
    """More rows than are summed at once, of a mean far from zero."""
    rows = make_rows("s", 9000)
    rows.image_embeds[:] += 100
    write_rows(tmp_path, "s", rows)
    x = rows.image_embeds.astype(np.float16).astype(np.float64)
    mean, std = Pairs(tmp_path).statistics()
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, x.std(axis=0), rtol=1e-6)


def test_constant_dimensions_have_no_deviation(tmp_path: Path) -> None:
    embeds = np.full((9, WIDTH), 3.3, dtype=np.float32)
    write_rows(tmp_path, "s", PairRows(embeds, np.zeros(9, np.bool_), [""] * 9, ["k"] * 9))
    mean, std = Pairs(tmp_path).statistics()
    np.testing.assert_allclose(mean, np.float16(3.3), rtol=1e-6)
    np.testing.assert_allclose(std, 0, atol=1e-6)


def test_digest_is_of_the_contents(copy: Path, written: tuple[Path, PairRows]) -> None:
    digest = Pairs(written[0]).digest
    assert Pairs(copy).digest == digest
    write_rows(copy, "b", make_rows("b", 13, seed=1))
    assert Pairs(copy).digest != digest


def test_more_shards_than_open_files_are_allowed(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{i:02d}": 1 for i in range(40)})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 8, before[1]))
        pairs = Pairs(tmp_path)
        assert pairs.keys(np.arange(40))[39].startswith("39/000")
        allow_open_files(10**9)  # as far as the hard limit allows
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
