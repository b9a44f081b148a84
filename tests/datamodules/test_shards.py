import io
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spatext.datamodules.shards import (
    MAX_SAMPLE_BYTES,
    BadSample,
    expand_shards,
    index_shard,
    read_sample,
)
from tars import Canary, png, scene, write_scenes, write_shard

PIXEL = png(np.zeros((1, 1, 3), dtype=np.uint8))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Names as given, which webdataset's writer would not allow."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_expand_braces_glob_folder_and_list(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:05d}.tar" for i in (2, 0, 1)]
    for path in paths:
        path.touch()
    (tmp_path / "00000.txt").touch()
    ordered = sorted(paths)
    assert expand_shards(str(tmp_path / "{00000..00002}.tar")) == ordered
    assert expand_shards(str(tmp_path / "{00002,00000}.tar")) == [ordered[2], ordered[0]]
    assert expand_shards(str(tmp_path / "*.tar")) == ordered
    assert expand_shards(tmp_path) == ordered
    assert expand_shards([ordered[2], str(tmp_path / "0000[01].tar")]) == [
        ordered[2],
        ordered[0],
        ordered[1],
    ]


@pytest.mark.parametrize("pattern", ["none/*.tar", "{00000..00001}.tar", "missing.tar", "."])
def test_no_match_names_the_pattern_and_the_option(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "00000.tar").touch() if "{" in pattern else None
    with pytest.raises(FileNotFoundError, match=r"datamodule\.shards") as error:
        expand_shards(str(tmp_path / pattern))
    assert str(tmp_path / pattern) in str(error.value)
    assert "\n" not in str(error.value)


def test_reads_what_was_written(tmp_path: Path) -> None:
    samples = {f"{i:06d}": scene(i) for i in range(4)}
    records = index_shard(write_shard(tmp_path / "00007.tar", samples))
    assert [record.name for record in records] == [f"00007/{key}" for key in samples]
    for record in records:
        assert read_sample(record) == samples[record.key]


def test_keys_end_at_the_first_dot_and_suffixes_are_lowered(tmp_path: Path) -> None:
    members = [("a.b/x.JPG", b"image"), ("a.b/x.panoptic.PNG", b"ids"), ("a.b/x.txt", b"text")]
    (record,) = index_shard(write_tar(tmp_path / "0.tar", members))
    assert record.key == "a.b/x"
    assert read_sample(record) == {"jpg": b"image", "panoptic.png": b"ids", "txt": b"text"}


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "npy"])
def test_pickles_are_neither_run_nor_read(tmp_path: Path, suffix: str) -> None:
    canary = tmp_path / "ran"
    payload = pickle.dumps(Canary(canary))
    members = [("0.png", PIXEL), (f"0.{suffix}", payload), ("0.txt", b"a")]
    (record,) = index_shard(write_tar(tmp_path / "0.tar", members))
    assert set(read_sample(record)) == {"png", "txt"}
    assert not canary.exists()
    pickle.loads(payload)
    assert canary.exists()  # the payload is live


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("0.png", PIXEL), ("0.txt", b"a")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("0.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (record,) = index_shard(path)
    assert set(record.members) == {"png", "txt"}


def test_sample_without_image_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {"0": {"txt": b"a"}, "1": {"png": PIXEL, "txt": b"b"}, "2": {"json": b"{}"}}
    path = write_shard(tmp_path / "0.tar", samples)
    with caplog.at_level(logging.WARNING):
        records = index_shard(path)
    assert [record.key for record in records] == ["1"]
    assert "without jpg|jpeg|png|webp ('0', '2')" in caplog.text


def test_oversized_sample_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_SAMPLE_BYTES == 64 * 2**20
    monkeypatch.setattr("spatext.datamodules.shard_scan.MAX_SAMPLE_BYTES", 4096)
    samples = {"0": {"png": bytes(4097), "txt": b"a"}, "1": {"png": PIXEL, "txt": b"b"}}
    records = index_shard(write_shard(tmp_path / "0.tar", samples))
    assert [record.key for record in records] == ["1"]
    assert "sample too large ('0')" in caplog.text


@pytest.mark.parametrize(
    "names", [["0.png", "0.png", "0.txt"], ["0.png", "0.txt", "1.png", "1.txt", "0.json"]]
)
def test_duplicate_key_is_refused(tmp_path: Path, names: list[str]) -> None:
    path = write_tar(tmp_path / "0.tar", [(name, PIXEL) for name in names])
    with pytest.raises(ValueError, match=r"0\.tar: key occurs more than once \('0'\)"):
        index_shard(path)


@pytest.mark.parametrize(
    "extra", [{}, {"json": b'{"width": 3}'}, {"json": b"not json"}, {"json": b'{"caption": 3}'}]
)
def test_shard_without_captions_is_refused(tmp_path: Path, extra: dict[str, bytes]) -> None:
    path = write_shard(tmp_path / "0.tar", {str(i): {"png": PIXEL, **extra} for i in range(3)})
    with pytest.raises(ValueError, match="no sample with an image and a caption") as error:
        index_shard(path)
    message = str(error.value)
    assert str(path) in message
    assert ".png" in message
    assert "<key>.txt" in message
    assert "\n" not in message


def test_one_caption_in_a_json_is_enough(tmp_path: Path) -> None:
    samples = {
        "0": {"png": PIXEL, "json": b"{}"},
        "1": {"png": PIXEL, "json": b'{"caption": "a"}'},
    }
    assert len(index_shard(write_shard(tmp_path / "0.tar", samples))) == 2


@pytest.mark.parametrize(
    ("end", "found"),
    [(10, "cut inside a member"), (-512, "cut at a member boundary"), (-100, "cut in a header")],
)
def test_cut_shard_is_refused(tmp_path: Path, end: int, found: str) -> None:
    path = write_scenes(tmp_path, 3) / "00000.tar"
    first_byte = index_shard(path)[-1].span[0]
    path.write_bytes(path.read_bytes()[: first_byte + end])
    with pytest.raises(ValueError, match=rf"00000\.tar: {found} \(byte {first_byte + end}, sample"):
        index_shard(path)


def test_damaged_header_is_refused(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, 3) / "00000.tar"
    data = bytearray(path.read_bytes())
    data[index_shard(path)[1].span[0] - 512] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"00000\.tar: damaged header \(byte"):
        index_shard(path)


def test_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(ValueError, match="not a plain tar"):
        index_shard(tmp_path / "0.tar")


def test_shard_that_shrank_after_indexing_is_a_bad_sample(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, 2) / "00000.tar"
    record = index_shard(path)[-1]
    path.write_bytes(path.read_bytes()[: record.span[1] - 1])
    with pytest.raises(BadSample, match="shorter than its index"):
        read_sample(record)
