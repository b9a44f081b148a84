"""Headers of plain tar files (ustar, GNU, pax), read strictly and by position.

Python's `tarfile`, and webdataset with it, takes a cut file or a damaged header for the end of the
archive and drops the rest without a word. Here each of them is a `TarFault`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple
from zlib import adler32

BLOCK = 512
EMPTY = bytes(BLOCK)
MAX_EXTENSION = 2**20  # bytes of a long name or of a pax header
SCAN = 2**20  # bytes behind the end that are looked at in one go
BLANKS = 8 * ord(" ")  # what the field of the checksum counts as
CUT_INSIDE = "cut inside a member"
SPARSE_MORE, SPARSE_MORE_NEXT = 482, 504  # GNU's flags "another sparse header follows"

Read = Callable[[int, int], bytes]
"""(offset, size) -> at most `size` bytes from there, fewer only at the end of the file."""


class TarFault(ValueError):
    """`kind` of damage, the same for all of its kind, and the byte where it was found."""

    def __init__(self, kind: str, offset: int) -> None:
        super().__init__(f"{kind} at byte {offset}")
        self.kind, self.offset = kind, offset


class Member(NamedTuple):
    """`start` is the byte of its first header, pax and long names included, `data` of its payload;
    `is_file`: a plain file, neither link, folder, device nor sparse."""

    name: str
    start: int
    data: int
    size: int
    is_file: bool

    @property
    def end(self) -> int:
        return self.data + self.size


class Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes


def walk(read: Read, num_bytes: int) -> Iterator[Member]:
    """Members of a whole file; TarFault unless it ends as a tar does, with two empty blocks and
    nothing but zeros behind them."""
    position = 0
    while True:
        member, position = read_member(read, position, num_bytes)
        if member is None:
            break
        if member.end > num_bytes:
            raise TarFault(CUT_INSIDE, num_bytes)
        yield member
    if num_bytes < position + 2 * BLOCK:
        raise TarFault("cut in the end marker", num_bytes)
    for start in range(position, num_bytes, SCAN):
        if any(block := read(start, min(SCAN, num_bytes - start))):
            raise TarFault("data after the end", start + len(block) - len(block.lstrip(b"\0")))


def walk_span(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, end) of the plain files of a part that begins at a header and ends with a
    payload."""
    position = 0

    def read(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    while position < len(data):
        if (plain := parse_plain(data[position : position + BLOCK])) is not None:
            (name, size), start, is_file = plain, position + BLOCK, True
            end, position = start + size, start + padded(size)
        else:
            member, position = read_member(read, position, len(data))
            if member is None:
                raise TarFault("no member", position)
            name, start, end, is_file = member.name, member.data, member.end, member.is_file
        if end > len(data):
            raise TarFault(CUT_INSIDE, len(data))
        if is_file:
            yield name, start, end


def read_member(read: Read, position: int, num_bytes: int) -> tuple[Member | None, int]:
    """The member whose headers begin there, None at an empty block; and where the next begins."""
    block = read(position, BLOCK)
    if (plain := parse_plain(block)) is not None:
        (text, size), data = plain, position + BLOCK
        return Member(text, position, data, size, True), data + padded(size)
    start, long_name, pax = position, b"", dict[bytes, bytes]()
    while True:
        if len(block) < BLOCK:
            kind = "cut in a header"
            if position == start and not any(block):
                kind = "cut in the end marker" if block else "cut at a member boundary"
            raise TarFault(kind, num_bytes)
        if block == EMPTY and position == start:
            return None, position
        header = parse_header(block, position)
        data = position + BLOCK
        if header.kind not in b"LKxgX":
            break
        if header.size > MAX_EXTENSION:
            raise TarFault("damaged header", position)
        payload = read(data, header.size)
        if len(payload) < header.size:
            raise TarFault("cut in a header", num_bytes)
        if header.kind == b"L":
            long_name = payload.partition(b"\0")[0]
        elif header.kind in b"xX":
            pax |= parse_pax(payload, position)
        position = data + padded(header.size)
        block = read(position, BLOCK)
    if header.kind == b"S" and block[SPARSE_MORE]:
        data = _skip_sparse(read, data, num_bytes)
    size, name = header.size, pax.get(b"path") or long_name or header.name
    if b"size" in pax:
        size = _number(pax[b"size"], 10, start)
    has_data = header.kind not in b"123456"  # links, devices and folders have none
    is_file = header.kind in (b"0", b"\0", b"7") and not name.endswith(b"/")
    sparse = any(key.startswith(b"GNU.sparse") for key in pax)
    size = size if has_data else 0
    text = name.decode("utf-8", errors="backslashreplace")
    return Member(text, start, data, size, is_file and not sparse), data + padded(size)


def parse_plain(block: bytes) -> tuple[str, int] | None:
    """(name, size) of a file whose header is whole and needs no other; None for every other block.

    Nearly all headers are such, and each sample that is read has several of them. Adler-32 adds
    bytes up at the speed of C, modulo 65521, which 512 bytes of ASCII do not reach."""
    if len(block) < BLOCK or block[156] not in b"0\0" or block[345] or not block.isascii():
        return None
    stored, size = block[148:156].strip(b" \0"), block[124:136].strip(b" \0")
    name = block[:100].partition(b"\0")[0]
    if not stored.isdigit() or not size.isdigit() or name.endswith(b"/"):
        return None
    try:
        total = (adler32(block) & 0xFFFF) - (adler32(block[148:156]) & 0xFFFF)
        if total + BLANKS != int(stored, 8):
            return None
        return name.decode("ascii"), int(size, 8)
    except ValueError:  # 8 or 9 among the digits
        return None


def parse_header(block: bytes, position: int) -> Header:
    stored = block[148:156]
    expected = _number(stored, 8, position)
    if sum(block) - sum(stored) + BLANKS != expected:
        signed = sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + BLANKS
        if signed != expected:  # as some old writers add bytes up
            raise TarFault("damaged header", position)
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    size = block[124:136]
    if size[0] & 0x80:  # GNU's binary form of what 11 octal digits do not hold
        return Header(name, int.from_bytes(size[1:], "big"), block[156:157])
    return Header(name, _number(size, 8, position), block[156:157])


def parse_pax(payload: bytes, position: int) -> dict[bytes, bytes]:
    """Records "<length> <key>=<value>\\n"."""
    records, rest = dict[bytes, bytes](), payload.rstrip(b"\0")
    while rest:
        digits, space, _ = rest.partition(b" ")
        length = _number(digits, 10, position)
        key, equals, value = rest[len(digits) + 1 : length].partition(b"=")
        if not (space and equals and value.endswith(b"\n")) or len(rest) < length:
            raise TarFault("damaged header", position)
        records[key], rest = value[:-1], rest[length:]
    return records


def padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _skip_sparse(read: Read, data: int, num_bytes: int) -> int:
    while True:
        block = read(data, BLOCK)
        if len(block) < BLOCK:
            raise TarFault("cut in a header", num_bytes)
        data += BLOCK
        if not block[SPARSE_MORE_NEXT]:
            return data


def _number(field: bytes, base: int, position: int) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit() or (base == 8 and (b"8" in digits or b"9" in digits)):
        raise TarFault("damaged header", position)
    return int(digits, base)
