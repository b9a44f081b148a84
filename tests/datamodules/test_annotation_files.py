import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatext.datamodules.annotation_files import (
    ROWS,
    Manifest,
    SidecarWriter,
    check_recipe,
    encode_ids,
    first_difference,
    manifest_path,
    read_manifest,
    sidecar_folder,
    write_manifest,
)
from spatext.datamodules.images import decode_ids
from spatext.datamodules.remote import RemoteShard


@pytest.mark.parametrize(("top", "mode"), [(0, "L"), (255, "L"), (256, "I;16"), (65535, "I;16")])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (40, 61)])
def test_maps_are_gray_pngs_that_come_back(top: int, mode: str, size: tuple[int, int]) -> None:
    ids = np.random.default_rng(0).integers(0, top + 1, size, dtype=np.int32)
    ids[0, -1] = top
    data = encode_ids(ids)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, size[::-1])
    found = decode_ids(data, 10**6)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids)


def test_ids_that_a_png_does_not_hold() -> None:
    for value in (65536, -1):
        with pytest.raises(ValueError, match="expected ids from 0 to 65535"):
            encode_ids(np.full((2, 2), value, dtype=np.int32))


def test_rows_say_where_the_entries_are(tmp_path: Path) -> None:
    """Also behind names that need headers of their own; tarfile reads the same."""
    keys = ["a", "b" * 150, "\u00fc"]
    with SidecarWriter(tmp_path / "s.tar", 5) as writer:
        for number, key in zip((0, 2, 3), keys, strict=True):
            writer.add(number, key, {"json": b"x" * 600, "panoptic.png": key.encode()}, 7 + number)
        file, rows = writer.finish()
    data = (tmp_path / "s.tar").read_bytes()
    assert file["bytes"] == len(data)
    table = np.frombuffer(data[rows : rows + 5 * 24], dtype="<u8").reshape(5, 3)
    assert table[:, 2].tolist() == [7, 0, 9, 10, 0]
    assert not table[1].any()
    with tarfile.open(tmp_path / "s.tar") as tar:
        names = tar.getnames()
        assert {(m.mtime, m.uid, m.uname) for m in tar.getmembers()} == {(0, 0, "")}
    assert names == [f"{k}.{s}" for k in keys for s in ("json", "panoptic.png")] + [ROWS]
    for number, key in zip((0, 2, 3), keys, strict=True):
        start, span, _ = table[number].tolist()
        with tarfile.open(fileobj=io.BytesIO(data[start : start + span] + bytes(10240))) as tar:
            assert tar.getnames() == [f"{key}.json", f"{key}.panoptic.png"]
        assert data[start : start + span].endswith(key.encode())


def example() -> Manifest:
    source = {"name": "s.tar", "num_samples": 3}
    file = {"bytes": 9, "sha256": "0"}
    return Manifest({"a": 1}, source, 2, 4, 0, {"not a PNG": 1}, file, 512)


def test_manifests_come_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, "s", example())
    assert read_manifest(manifest_path(tmp_path, "s")) == example()
    assert example().num_samples == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "found version 2 of annotations, expected 1; make them again"),
        ({"num_images": "2"}, "no manifest of annotations: num_images is '2'"),
        ({"num_images": True}, "num_images is True"),
        ({"file": {}}, "file or source lack entries"),
    ],
)
def test_other_manifests_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_manifest(tmp_path, "s", example())
    path = manifest_path(tmp_path, "s")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_manifest(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="no manifest of annotations"):
        read_manifest(path)


def test_differences_are_named() -> None:
    found = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert first_difference(found, json.loads(json.dumps(found))) is None
    assert first_difference(found, {"a": 1, "b": {"c": [1, 3], "d": None}}) == (
        "b.c = [1, 2], now [1, 3]"
    )
    assert first_difference(found, {"a": 1}) == "b = {'c': [1, 2], 'd': None}, now None"
    assert first_difference({}, {"x": 1}) == "x = None, now 1"
    with pytest.raises(ValueError, match=r"^f: made with a = 1, now 2; set overwrite=true or choo"):
        check_recipe(Path("f"), found, found | {"a": 2})


def test_places() -> None:
    assert sidecar_folder(Path("data/0.tar")) == Path("data/annotations")
    assert sidecar_folder(Path("data/0.tar"), "other") == Path("other")
    shard = RemoteShard("s3://bucket/0.tar")
    assert sidecar_folder(shard, "other") == Path("other")
    with pytest.raises(ValueError, match=r"s3://bucket/0.tar: nothing .* expected out=FOLDER"):
        sidecar_folder(shard)
