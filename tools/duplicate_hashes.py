"""Perceptual hashes of the images of shards, kept on the disk shard by shard."""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from spatext.datamodules.documents import atomic_path
from spatext.datamodules.images import decode_image
from spatext.datamodules.index_places import digest_of, part_path
from spatext.datamodules.near_duplicates import phash
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.shards import IMAGE_SUFFIXES, BadSample

MAX_PIXELS = 64_000_000  # as of datamodule.max_pixels
HASHED_SIDE = 128  # that a JPEG is decoded at, at least: fast, and the hash needs 32


class ShardHashes(Dataset[int]):
    """Hashes shard by shard, kept in `parts`; an item is the number of samples without one."""

    def __init__(self, index: ShardIndex, parts: Path) -> None:
        self.index, self.parts = index, parts

    def __len__(self) -> int:
        return len(self.index.shards)

    def __getitem__(self, which: int) -> int:
        num = int(self.index.sizes[which])
        part = self.read(which)
        return num - len(part["hash"]) if part else num - self.write(which, num)

    def read(self, which: int) -> dict[str, np.ndarray]:
        """Empty where there is none of the shard as it is indexed."""
        try:
            with np.load(part_path(self.parts, self.index.shards[which]), allow_pickle=False) as f:
                part = {name: f[name] for name in f.files}
        except (OSError, ValueError, EOFError):
            return {}
        return part if part["of"].item() == self.identity(which) else {}

    def identity(self, which: int) -> str:
        entry = self.index.entries[which]
        return digest_of([entry["samples"], entry["layout"], str(entry.get("mtime_ns"))])

    def write(self, which: int, num: int) -> int:
        first = self.index.ends[which] - num
        places, hashes, keys = [], [], []
        for place in range(num):
            try:
                name, members = self.index.read(first + place)
                suffix = next(s for s in IMAGE_SUFFIXES if s in members)
                image = decode_image(members[suffix], MAX_PIXELS, HASHED_SIDE)
            except BadSample:
                continue
            places.append(place)
            hashes.append(phash(np.asarray(image)))
            keys.append(name)
        arrays = {
            "place": np.array(places, dtype=np.int64),
            "hash": np.array(hashes, dtype=np.uint64),
            "key": np.array(keys, dtype=np.str_),
            "of": np.array(self.identity(which)),
        }
        path = part_path(self.parts, self.index.shards[which])
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return len(hashes)
