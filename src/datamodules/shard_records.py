"""What shards hold: members by suffix, samples, and the kinds of fault.

Layout of img2dataset: `<key>.jpg|jpeg|png|webp`, `<key>.txt`, `<key>.json`, optionally
`<key>.panoptic.png`. Every other member is passed over; nothing is unpickled.
"""

from enum import IntFlag
from typing import NamedTuple

from .locations import Shard, open_reader

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
PANOPTIC_SUFFIX = "panoptic.png"
SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json", PANOPTIC_SUFFIX)
ANNOTATION = "annotation"  # no member of a shard: the json of a sidecar's entry
MAX_SAMPLE_BYTES = 64 * 2**20

# Faults of a whole tar have the words of `TarFault`; after these two the samples are all there.
COMPLETE = ("cut in the end marker", "data after the end")
NO_TAR = "not a plain tar"
TWICE = "key occurs more than once"
NO_CAPTIONS = "no sample with an image and a caption"
STATISTICS = "number of samples differs from the statistics"
NO_STATISTICS = "without statistics, which other shards have"
CHANGED = "changed since it was indexed"
UNREADABLE = "unreadable"
# These concern single samples and are no damage; the first two leave the sample out.
NO_IMAGE = "without " + "|".join(IMAGE_SUFFIXES)
TOO_LARGE = "sample too large"
NO_CAPTION = "without caption"
NOTICES = (NO_IMAGE, TOO_LARGE, NO_CAPTION)


class Flag(IntFlag):
    """What a sample has; never renumber, indexes hold it."""

    TXT = 1
    JSON = 2
    PANOPTIC = 4
    CAPTION = 8  # a .txt, or "caption" in the .json


FLAGS = {"txt": Flag.TXT, "json": Flag.JSON, PANOPTIC_SUFFIX: Flag.PANOPTIC}


class BadSample(Exception):
    """A sample that cannot be used; the text is a short reason, the same for all of its kind."""


class RawSample(NamedTuple):
    """`name` is "<shard stem>/<key>", `members` the bytes by suffix."""

    name: str
    members: dict[str, bytes]


class Fault(NamedTuple):
    """`where`: the first keys, or the byte."""

    kind: str
    num: int
    where: str

    @property
    def is_damage(self) -> bool:
        return self.kind not in NOTICES

    def __str__(self) -> str:
        return f"{self.kind} ({self.where})" if self.where else self.kind


class SampleRecord(NamedTuple):
    """Where a sample lies: `members` maps a suffix to (offset, size) in the shard, `start` is the
    byte of its first header."""

    shard: Shard
    key: str
    members: dict[str, tuple[int, int]]
    start: int

    @property
    def name(self) -> str:
        return f"{self.shard.stem}/{self.key}"

    @property
    def span(self) -> tuple[int, int]:
        """(first byte, one past the last byte) of the members' payloads."""
        return (
            min(offset for offset, _ in self.members.values()),
            max(offset + size for offset, size in self.members.values()),
        )

    @property
    def num_bytes(self) -> int:
        """From the first header to the last payload."""
        return self.span[1] - self.start

    def read(self) -> RawSample:
        """In one positional read."""
        first, last = self.span
        with open_reader(self.shard) as read:
            data = read(first, last - first)
        if len(data) != last - first:
            raise BadSample("shard shorter than its index")
        cut = {s: data[o - first : o - first + size] for s, (o, size) in self.members.items()}
        return RawSample(self.name, cut)


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix): the key ends at the basename's first dot; "" for one without a stem."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (folder + slash + stem if stem else ""), suffix.lower()
