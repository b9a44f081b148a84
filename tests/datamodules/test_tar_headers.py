"""The walk over headers agrees with Python's tarfile where a tar is whole, and only there."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spatext.datamodules.tar_headers import BLOCK, Member, TarFault, walk, walk_span

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "folder/" * 12 + "x" * 60  # over 100 bytes: a prefix, a long name or a pax record
NAMES = ["a.jpg", "a.txt", LONG + ".jpg", LONG + ".txt", "b.png"]
LONGEST = "y" * 300 + ".json"  # too long for ustar


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: data[offset : offset + size]


def members(data: bytes) -> list[Member]:
    return list(walk(reader(data), len(data)))


def make_tar(names: list[str], form: int, sizes: list[int] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = sizes[i] if sizes else 7 * i
            tar.addfile(info, io.BytesIO(bytes([65 + i]) * info.size))
    return file.getvalue()


def expected(data: bytes) -> list[tuple[str, int, int, bool]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, m.offset_data, m.size, m.isreg() and not m.issparse()) for m in tar]


@pytest.mark.parametrize("form", FORMATS)
def test_agrees_with_tarfile(form: str) -> None:
    names = NAMES if form == "ustar" else [*NAMES, LONGEST, "z-\u00e4\u6f22.txt"]
    data = make_tar(names, FORMATS[form])
    found = members(data)
    assert [(m.name, m.data, m.size, m.is_file) for m in found] == expected(data)
    assert [m.name for m in found] == names
    starts = [0] + [-(-m.end // BLOCK) * BLOCK for m in found[:-1]]
    assert [m.start for m in found] == starts  # extensions belong to the member behind them


@pytest.mark.parametrize("form", FORMATS)
def test_other_kinds_of_members_are_no_files(form: str) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=FORMATS[form]) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"kind{kind!r}")
            info.type, info.linkname = kind, LONG if form != "ustar" else "a"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("plain"))
    found = members(file.getvalue())
    known = [(m.name.rstrip("/"), m.data, m.size, m.is_file) for m in found]
    assert known == expected(file.getvalue())
    assert [m.name for m in found if m.is_file] == ["plain"]


def test_sizes_beyond_the_octal_field() -> None:
    """9 GiB, of which the test holds the header only."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("big.bin")
        info.size = 9 * 2**30
        header = info.tobuf(form)
        end = len(header) + info.size
        read = reader(header)
        found = list(walk(lambda o, s, r=read: r(o, s) if o < 4096 else bytes(s), end + 1024))
        assert [(m.name, m.size, m.end) for m in found] == [("big.bin", info.size, end)]


def test_old_headers_whose_bytes_were_added_up_with_a_sign() -> None:
    data = bytearray(make_tar(["\u00e4.txt"], tarfile.GNU_FORMAT))
    signed = sum(b - 256 if b > 127 else b for b in data[:148] + data[156:512]) + 256
    data[148:156] = b"%06o\0 " % signed
    assert [m.name for m in members(bytes(data))] == ["\u00e4.txt"]


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_is_found(form: str) -> None:
    """At each multiple of 128 bytes, up to the second empty block of the end."""
    data = make_tar(NAMES, FORMATS[form], [700] * len(NAMES))
    whole = members(data)
    end = -(-whole[-1].end // BLOCK) * BLOCK
    for cut in range(0, end + 2 * BLOCK, 128):
        with pytest.raises(TarFault) as error:
            members(data[:cut])
        assert error.value.offset == cut
        inside = any(m.data <= cut < m.end for m in whole)
        between = cut in (0, end) or any(-(-m.end // BLOCK) * BLOCK == cut for m in whole)
        if inside:
            assert error.value.kind == "cut inside a member"
        elif between:
            assert error.value.kind == "cut at a member boundary"
        elif cut > end:
            assert error.value.kind == "cut in the end marker"
        else:
            assert error.value.kind in ("cut in a header", "cut at a member boundary")
    assert members(data[: end + 2 * BLOCK]) == whole


def test_every_flipped_bit_of_a_header_is_found() -> None:
    data = make_tar(["a.jpg", "b.jpg"], tarfile.PAX_FORMAT, [10, 10])
    start = members(data)[1].start
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * BLOCK, 300, replace=False):
        if 148 * 8 <= bit < 156 * 8:
            continue  # the sum itself, of which an empty digit may become another
        broken = bytearray(data)
        broken[start + bit // 8] ^= 1 << bit % 8
        with pytest.raises(TarFault, match=f"damaged header at byte {start}"):
            members(bytes(broken))


@pytest.mark.parametrize("garbage", [b"x", bytes(5000) + b"x", make_tar(["c"], tarfile.PAX_FORMAT)])
def test_data_after_the_end_is_found(garbage: bytes) -> None:
    data = make_tar(["a.jpg"], tarfile.PAX_FORMAT)
    assert members(data + bytes(20000)) == members(data)
    with pytest.raises(TarFault, match="data after the end") as error:
        members(data + garbage)
    assert error.value.offset == len(data) + len(garbage) - len(garbage.lstrip(b"\0"))


@pytest.mark.parametrize("payload", [b"12 path", b"999 path=a\n", b"x path=a\n", b"9 pathaaa"])
def test_damaged_pax_records_are_found(payload: bytes) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(payload)
    data = info.tobuf(tarfile.USTAR_FORMAT) + payload.ljust(BLOCK, b"\0")
    with pytest.raises(TarFault, match="damaged header at byte 0"):
        members(data + make_tar(["a.jpg"], tarfile.PAX_FORMAT))


def test_an_endless_long_name_is_not_read() -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    with pytest.raises(TarFault, match="damaged header at byte 0"):
        members(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def test_a_part_is_walked_alone(tmp_path: Path) -> None:
    data = make_tar(NAMES, tarfile.PAX_FORMAT, [700] * len(NAMES))
    whole = members(data)
    part = data[whole[1].start : whole[2].end]
    names = [(name, part[start:end]) for name, start, end in walk_span(part)]
    assert names == [(m.name, data[m.data : m.end]) for m in whole[1:3]]
    for wrong in (part[:-1], part[512:]):
        with pytest.raises(TarFault):
            list(walk_span(wrong))
