"""Folders of pairs that are damaged, incomplete or of another making."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pair_folders import FINGERPRINT, NUM, SIZES, make_rows, write_folder, write_rows
from spatext.datamodules.pair_files import array_path, check_files, manifest_path
from spatext.datamodules.pair_folder import Pairs, read_folder


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
