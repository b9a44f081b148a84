"""What is wrong with a shard is found when it is indexed, by name; and nothing else is."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from spatext.datamodules.shard_records import BadSample, Fault, Flag
from spatext.datamodules.shard_scan import ShardScan, scan_shard
from tars import png, scene, write_shard

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
PIXEL = png(np.zeros((1, 1, 3), dtype=np.uint8))


def write_members(path: Path, members: list[tuple[str, bytes]], form: int = FORMATS[2]) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def keys(scan: ShardScan) -> list[str]:
    return [record.key for record in scan.records]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "00000.tar", {f"{i:03d}": scene(i) for i in range(6)})


def cut_at(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_a_good_shard_is_told_whole(shard: Path) -> None:
    scan = scan_shard(shard, checksum=True)
    assert scan.faults == []
    assert keys(scan) == [f"{i:03d}" for i in range(6)]
    arrays = scan.arrays()
    assert sum(array.dtype.itemsize for array in arrays.values()) == 17
    data = shard.read_bytes()
    for record, offset, span in zip(scan.records, arrays["offset"], arrays["span"], strict=True):
        part = data[int(offset) : int(offset) + int(span)]
        assert part.startswith(record.key.encode() + b".json\0")
        assert part.endswith(scene(int(record.key))["txt"])  # the last one, as they are sorted
    assert set(arrays["height"]) == {32}
    assert set(arrays["width"]) == {48}
    everything = Flag.TXT | Flag.JSON | Flag.PANOPTIC | Flag.CAPTION
    assert set(arrays["flags"]) == {int(everything)}


@pytest.mark.parametrize(
    ("member", "byte", "found"),
    [
        ("png", 10, "cut inside a member"),
        ("png", -512, "cut at a member boundary"),
        ("png", -100, "cut in a header"),
        ("json", -512, "cut at a member boundary"),  # which is one of samples too
    ],
)
def test_cuts(shard: Path, member: str, byte: int, found: str) -> None:
    byte += scan_shard(shard).records[4].members[member][0]
    cut_at(shard, byte)
    scan = scan_shard(shard)
    last = "004" if member == "png" else "003"
    assert scan.damage == [Fault(found, 1, f"byte {byte}, sample {last!r}")]
    assert keys(scan) == [f"{i:03d}" for i in range(int(last))]  # what is surely whole


def test_a_cut_of_the_end_alone_loses_no_sample(shard: Path) -> None:
    end = -(-scan_shard(shard).records[-1].span[1] // 512) * 512
    cut_at(shard, end + 512)
    scan = scan_shard(shard)
    assert scan.damage == [Fault("cut in the end marker", 1, f"byte {end + 512}")]
    assert len(scan.samples) == 6
    cut_at(shard, end + 1024) or shard.write_bytes(shard.read_bytes() + bytes(512))
    assert scan_shard(shard).faults == []


def test_damaged_header(shard: Path) -> None:
    start = scan_shard(shard).records[3].start
    flip(shard, start + 3)
    scan = scan_shard(shard)
    assert scan.damage == [Fault("damaged header", 1, f"byte {start}, sample '002'")]
    assert keys(scan) == ["000", "001"]


def test_a_bit_of_a_payload_changes_the_checksum_alone(shard: Path) -> None:
    before = scan_shard(shard, checksum=True)
    flip(shard, before.records[2].members["png"][0] + 60)
    after = scan_shard(shard, checksum=True)
    assert after.faults == []
    assert after.layout == before.layout
    assert after.facts["sha256"] != before.facts["sha256"]


@pytest.mark.parametrize(
    ("successes", "found"), [(6, []), (9, ["6 in the shard, 9 there"]), (None, ["nothing there"])]
)
def test_statistics_are_compared(shard: Path, successes: int | None, found: list[str]) -> None:
    stats = {"count": 10, "successes": successes} if successes else []
    shard.with_name("00000_stats.json").write_text(json.dumps(stats))
    scan = scan_shard(shard)
    assert scan.has_statistics
    assert [fault.where.rpartition(", ")[2] if not successes else fault.where
            for fault in scan.damage] == found  # fmt: skip


def test_a_cut_between_samples_is_seen_by_the_statistics_too(shard: Path) -> None:
    """Even with the end of a tar behind it, as a writer leaves that was told to stop."""
    shard.with_name("00000_stats.json").write_text('{"successes": 6}')
    end = scan_shard(shard).records[4].start
    shard.write_bytes(shard.read_bytes()[:end] + bytes(1024))
    (fault,) = scan_shard(shard).damage
    assert fault.where == "4 in the shard, 6 there"


def test_keys_that_come_again(tmp_path: Path) -> None:
    names = ["a.png", "a.txt", "b.png", "b.txt", "a.json", "c.png", "c.png", "c.txt", "d.png"]
    scan = scan_shard(write_members(tmp_path / "0.tar", [(n, PIXEL) for n in [*names, "d.txt"]]))
    assert scan.damage == [Fault("key occurs more than once", 2, "'a', 'c'")]
    assert keys(scan) == ["b", "d"]  # of the others nothing is certain


def test_data_after_the_end(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + shard.read_bytes())  # cat a.tar b.tar
    scan = scan_shard(shard)
    assert [fault.kind for fault in scan.damage] == ["data after the end"]
    assert len(scan.samples) == 6


@pytest.mark.parametrize("data", [b"", b"<html>" * 200, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    (fault,) = scan_shard(tmp_path / "0.tar").damage
    assert fault.kind == "not a plain tar"


def test_samples_that_lack_something_are_noticed(tmp_path: Path) -> None:
    samples = {
        "whole": {"png": PIXEL, "txt": b"a"},
        "imageless": {"txt": b"a"},
        "mute": {"png": PIXEL, "json": b'{"width": 3}'},
        "told": {"png": PIXEL, "json": b'{"caption": "a"}'},
    }
    scan = scan_shard(write_shard(tmp_path / "0.tar", samples))
    assert scan.damage == []
    assert scan.faults == [
        Fault("without jpg|jpeg|png|webp", 1, "'imageless'"),
        Fault("without caption", 1, "'mute'"),
    ]
    assert keys(scan) == ["whole", "mute", "told"]


def jpeg(size: tuple[int, int], orientation: int) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size[::-1]).save(file, "JPEG", exif=exif)
    return file.getvalue()


def webp(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size[::-1]).save(file, "WEBP")
    return file.getvalue()


def test_sizes_are_those_after_turning(tmp_path: Path) -> None:
    images = [("jpg", jpeg((30, 70), 1)), ("jpg", jpeg((30, 70), 6)), ("webp", webp((9, 5)))]
    images += [("png", png(np.zeros((4, 3), dtype=np.uint8))), ("jpg", b"<html>"), ("jpg", b"")]
    samples = {f"{i}": {suffix: data, "txt": b"a"} for i, (suffix, data) in enumerate(images)}
    scan = scan_shard(write_shard(tmp_path / "0.tar", samples))
    sizes = [sample.size for sample in scan.samples]
    assert sizes == [(30, 70), (70, 30), (9, 5), (4, 3), (0, 0), (0, 0)]
    assert scan.faults == []


def test_no_false_alarms(tmp_path: Path) -> None:
    """Good shards of several writers, with names of all lengths and members of no interest."""
    rng = np.random.default_rng(0)
    path = tmp_path / "0.tar"
    for number in range(300):
        count = int(rng.integers(1, 8))
        depth = int(rng.integers(0, 40)) if number % 2 else 0
        names = [
            f"{'d' * depth}{'/' * bool(depth)}{i:0{rng.integers(4, 90)}d}" for i in range(count)
        ]
        extra = {"npy": rng.bytes(int(rng.integers(0, 2000)))} if number % 3 == 0 else {}
        samples = {n: {"jpg": rng.bytes(600), "txt": b"caption", **extra} for n in names}
        if number % 4 == 3:
            with wds.TarWriter(str(path), encoder=False) as writer:
                for name, members in samples.items():
                    writer.write({"__key__": name, **members})
        else:
            pairs = [
                (f"{n}.{s}", data) for n, members in samples.items() for s, data in members.items()
            ]
            write_members(path, pairs, FORMATS[number % 4])
        scan = scan_shard(path)
        assert scan.faults == [], number
        assert keys(scan) == list(samples), number


def test_images_and_captions_never_mix(tmp_path: Path) -> None:
    """Each payload holds its own key; members in all orders, keys that come again, interlopers."""
    rng = np.random.default_rng(1)
    path, num_samples, num_refused = tmp_path / "0.tar", 0, 0
    while num_samples < 3000:
        members = []
        for i in rng.permutation(30):
            suffixes = [s for s in ("jpg", "txt", "json", "cls", "npy") if rng.random() < 0.8]
            members += [(f"{i}.{s}", f"{i} {s}".encode()) for s in rng.permutation(suffixes)]
        kind = rng.integers(4)
        for _ in range(kind):  # moved ones, copies, other suffixes of a key
            what = members[int(rng.integers(len(members)))]
            members.insert(int(rng.integers(len(members))), what)
            if rng.random() < 0.5:
                members.remove(what)
        scan = scan_shard(write_members(path, [(str(n), d) for n, d in members]), sizes=False)
        wanted = {n.split(".")[0] for n, _ in members if n.endswith(".jpg")}
        if not scan.damage:
            assert set(keys(scan)) == wanted
        num_refused += bool(scan.damage)
        for record in scan.records:
            for suffix, data in record.read().members.items():
                assert data == f"{record.key} {suffix}".encode()
        num_samples += len(scan.records)
    assert num_refused > 20


def test_a_shard_that_shrank_is_a_bad_sample(shard: Path) -> None:
    record = scan_shard(shard).records[-1]
    cut_at(shard, record.span[1] - 1)
    with pytest.raises(BadSample, match="shorter than its index"):
        record.read()
