import json
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pair_folders import FINGERPRINT, WIDTH, make_rows, write_folder, write_rows
from spatext.datamodules.pair_files import PairRows, array_path, check_files, manifest_path
from spatext.datamodules.pair_folder import Pairs, allow_open_files, read_folder

SIZES = {"b": 13, "a": 7, "empty": 0, "c": 20}
NUM = sum(SIZES.values())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PairRows]:
    """A folder, and what all of its shards hold in the order of their names."""
    folder = tmp_path_factory.mktemp("pairs")
    shards = [rows for _, rows in sorted(write_folder(folder, SIZES).items())]
    return folder, PairRows(
        image_embeds=np.concatenate([rows.image_embeds for rows in shards]),
        is_region=np.concatenate([rows.is_region for rows in shards]),
        texts=[text for rows in shards for text in rows.texts],
        keys=[key for rows in shards for key in rows.keys],
    )


@pytest.fixture
def copy(written: tuple[Path, PairRows], tmp_path: Path) -> Path:
    return shutil.copytree(written[0], tmp_path / "copy")


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


@pytest.mark.parametrize("value", [7e4, -7e4, np.nan, np.inf])
def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path, value: float) -> None:
    rows = make_rows("s", 4)
    rows.image_embeds[2, 1] = value
    with pytest.raises(FloatingPointError, match=r"^s/002(#7)?: the CLIP embedding holds"):
        write_rows(tmp_path, "s", rows)
    assert list(tmp_path.iterdir()) == []


def test_no_folder_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none: no such folder, expected"):
        Pairs(tmp_path / "none")
    (tmp_path / "a.image_embeds.npy").touch()
    with pytest.raises(FileNotFoundError, match=r"no \*\.pairs\.json in it"):
        Pairs(tmp_path)
    write_folder(tmp_path, {"a": 0})
    with pytest.raises(ValueError, match="its 1 shards hold no pairs"):
        Pairs(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def replace(path: Path, array: np.ndarray) -> None:
    """With an array of another kind, in a file of the same size."""
    size = path.stat().st_size
    np.save(path, array, allow_pickle=True)
    data = path.read_bytes()[:size]
    path.write_bytes(data + bytes(size - len(data)))


def damage_text(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] = 0xFF
    path.write_bytes(data)


BREAKS: dict[str, tuple[str, Callable[[Path], None], type[Exception], str]] = {
    "missing": ("b.texts.npy", Path.unlink, FileNotFoundError, r"b\.texts\.npy: missing"),
    "cut": ("c.keys.npy", cut, ValueError, r"c\.keys\.npy: found \d+ bytes, expected \d+"),
    "cut manifest": ("a.pairs.json", cut, ValueError, r"a\.pairs\.json: no manifest"),
    "pickle": (
        "b.image_embeds.npy",
        lambda path: replace(path, np.array([{}], dtype=object)),
        ValueError,
        r"b\.image_embeds\.npy: no plain \.npy array",
    ),
    "zip": (
        "b.image_embeds.npy",
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(path.stat().st_size - 4)),
        ValueError,
        r"b\.image_embeds\.npy: no plain \.npy array",
    ),
    "type": (
        "b.image_embeds.npy",
        lambda path: replace(path, np.zeros((1, 3))),
        ValueError,
        r"found float64 \[1, 3\], expected float16 \[13, 5\]",
    ),
    "kinds": (
        "c.is_region.npy",
        lambda path: replace(path, np.zeros(20, dtype=np.bool_)),
        ValueError,
        "is_region disagrees with num_regions",
    ),
    "offsets": (
        "c.offsets.npy",
        lambda path: replace(path, np.ones((2, 21), dtype=np.int64)),
        ValueError,
        "do not end where the offsets say",
    ),
}


@pytest.mark.parametrize(("name", "spoil", "kind", "message"), BREAKS.values(), ids=BREAKS)
def test_broken_files_are_refused(
    copy: Path, name: str, spoil: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    Pairs(copy)
    spoil(copy / name)
    with pytest.raises(kind, match=message) as error:
        Pairs(copy)
    assert "\n" not in str(error.value)


def test_damaged_text_is_told_when_it_is_read(copy: Path) -> None:
    damage_text(array_path(copy, "a", "texts"))
    pairs = Pairs(copy)
    with pytest.raises(ValueError, match="damaged, found no UTF-8"):
        pairs.texts(np.arange(NUM))


def test_checksums_tell_a_changed_value(copy: Path) -> None:
    manifest = read_folder(copy)["b"]
    check_files(copy, "b", manifest, checksums=True)
    path = array_path(copy, "b", "image_embeds")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    check_files(copy, "b", manifest)
    with pytest.raises(ValueError, match=r"b\.image_embeds\.npy: damaged, its checksum differs"):
        check_files(copy, "b", manifest, checksums=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, r"a\.pairs\.json: found version 2 of embedding pairs, expected 1"),
        ("version", "1", "found version '1'"),
        ("num_images", -1, "no manifest of embedding pairs: num_images is -1"),
        ("files", [], "files is "),
        ("files", {}, "files.image_embeds is None"),
        ("fingerprint", {"clip": "a", "scale": "raw"}, "fingerprint.embed_dim missing"),
        ("fingerprint", {**FINGERPRINT, "embed_dim": "5"}, "embed_dim is '5'"),
        ("fingerprint", {**FINGERPRINT, "clip": "b"}, r"b\.pairs\.json has clip 'a', a.* has 'b'"),
        ("fingerprint", {**FINGERPRINT, "scale": "unit"}, "scale 'raw', a.* has 'unit'"),
    ],
)
def test_wrong_manifests_are_refused(copy: Path, key: str, value: object, message: str) -> None:
    path = manifest_path(copy, "a")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, key: value}))
    with pytest.raises(ValueError, match=message) as error:
        Pairs(copy)
    assert "\n" not in str(error.value)


def test_a_shard_without_its_manifest_does_not_count(copy: Path) -> None:
    manifest_path(copy, "b").unlink()
    assert len(Pairs(copy)) == NUM - SIZES["b"]


def test_a_shard_that_is_being_replaced_does_not_count(copy: Path) -> None:
    """Killed in the middle of it, it is neither the old one nor the new."""
    path = array_path(copy, "b", "moments")
    path.unlink()
    path.mkdir()  # where the last array cannot be renamed to
    with pytest.raises(IsADirectoryError):
        write_rows(copy, "b", make_rows("b", 13, seed=1))
    assert sorted(read_folder(copy)) == ["a", "c", "empty"]
    assert not list(copy.glob(".*"))


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
