"""Tars that arrive from their beginning to their end."""

from collections.abc import Iterator
from typing import Any

from .shard_records import IMAGE_SUFFIXES, MAX_SAMPLE_BYTES, SUFFIXES, RawSample, split_name
from .tar_headers import TarFault, read_member

NO_END = 2**62  # the length of a stream is not known
SKIP = 2**20  # bytes that are passed over at a time


class ForwardReader:
    """Reads by position from a stream, where each position lies behind the one before."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.position = stream, 0

    def __call__(self, offset: int, size: int) -> bytes:
        assert offset >= self.position
        while self.position < offset:
            if not (skipped := self.stream.read(min(SKIP, offset - self.position))):
                return b""
            self.position += len(skipped)
        data = bytearray()
        while len(data) < size and (more := self.stream.read(size - len(data))):
            data += more
        self.position += len(data)
        return bytes(data)


def stream_samples(stream: Any, stem: str) -> Iterator[RawSample]:
    """Samples with an image, of a tar as it arrives; TarFault where it breaks off, before the
    sample that it breaks off in. A suffix that a key has twice ends the sample there."""
    read, position = ForwardReader(stream), 0
    last, members = "", dict[str, bytes]()
    while True:
        member, position = read_member(read, position, NO_END)
        key, suffix = split_name(member.name) if member else ("", "")
        if member and (not member.is_file or not key or suffix not in SUFFIXES):
            continue
        if member is None or key != last or suffix in members:
            if any(suffix in members for suffix in IMAGE_SUFFIXES):
                yield RawSample(f"{stem}/{last}", members)
            last, members = key, {}
        if member is None:
            return
        if member.size <= MAX_SAMPLE_BYTES:
            members[suffix] = read(member.data, member.size)
            if len(members[suffix]) < member.size:
                raise TarFault("cut inside a member", read.position)
