"""The pairs of a folder, memory-mapped: rows of all its shards under one another."""

import hashlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from .pair_files import FINGERPRINT, SUFFIX, Manifest, check_files, open_array, read_manifest

MAPS = 4  # files of a shard that stay open


class PairShard:
    """The arrays of one shard: memory-mapped, or read where they are small."""

    def __init__(self, folder: Path, name: str, manifest: Manifest) -> None:
        check_files(folder, name, manifest)
        self.path, self.num = folder / name, len(manifest)
        width = manifest.fingerprint["embed_dim"]

        def load(array: str, dtype: type, *shape: int | None) -> np.ndarray:
            return open_array(folder, name, array, dtype, shape)

        self.image_embeds = load("image_embeds", np.float16, self.num, width)
        self.is_region = np.array(load("is_region", np.bool_, self.num))
        self.moments = np.array(load("moments", np.float64, 2, 2, width))
        self.offsets = load("offsets", np.int64, 2, self.num + 1)
        self.blobs = [load(array, np.uint8, None).data for array in ("texts", "keys")]
        if int(self.is_region.sum()) != manifest.num_regions:
            raise ValueError(f"{self.path}: is_region disagrees with num_regions of {name}{SUFFIX}")
        ends = [(0, len(blob)) for blob in self.blobs]
        if [(int(row[0]), int(row[-1])) for row in self.offsets] != ends:
            raise ValueError(f"{self.path}: texts or keys do not end where the offsets say")

    def strings(self, which: int, rows: Int64[np.ndarray, " b"]) -> list[str]:
        """Texts (0) or keys (1)."""
        blob, offsets = self.blobs[which], self.offsets[which]
        bounds = zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
        try:
            return [str(blob[start:stop], "utf-8") for start, stop in bounds]
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: texts or keys are damaged, found no UTF-8") from None


class Pairs:
    """The pairs of a folder, numbered through its shards in the order of their names.

    FileNotFoundError or ValueError, one line, for an empty folder, a file that is missing, cut or
    of another version, and for shards of different CLIP models. The values themselves are compared
    with their checksums by `spatext-embed verify=true` alone.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        manifests = read_folder(self.folder)
        allow_open_files(MAPS * len(manifests))
        self.fingerprint = common_fingerprint(self.folder, manifests)
        self.shards = [PairShard(self.folder, *item) for item in manifests.items()]
        self.starts = np.cumsum([0, *(shard.num for shard in self.shards)])
        if not len(self):
            raise ValueError(f"{self.folder}: its {len(self.shards)} shards hold no pairs")
        self.kinds = np.concatenate([shard.is_region for shard in self.shards])
        self.digest = digest(manifests)

    def __reduce__(self) -> tuple[type["Pairs"], tuple[Path]]:
        return Pairs, (self.folder,)  # another process maps the files again

    def __len__(self) -> int:
        return int(self.starts[-1])

    def image_embeds(self, rows: Int64[np.ndarray, " b"]) -> Float32[np.ndarray, "b d"]:
        embeds = np.empty((len(rows), int(self.fingerprint["embed_dim"])), dtype=np.float32)
        for shard, places, inside in self._by_shard(rows):
            embeds[places] = shard.image_embeds[inside]
        return embeds

    def is_region(self, rows: Int64[np.ndarray, " b"]) -> Bool[np.ndarray, " b"]:
        return self.kinds[rows]

    def texts(self, rows: Int64[np.ndarray, " b"]) -> list[str]:
        return self._strings(0, rows)

    def keys(self, rows: Int64[np.ndarray, " b"]) -> list[str]:
        return self._strings(1, rows)

    def statistics(
        self, region_share: float | None = None
    ) -> tuple[Float32[np.ndarray, " d"], Float32[np.ndarray, " d"]]:
        """Mean and (population) standard deviation of each dimension, from float64 sums.

        Over all pairs, or over the mixture that draws regions with the given probability.
        """
        num_regions = int(self.kinds.sum())
        counts = np.array([len(self) - num_regions, num_regions])
        share = num_regions / len(self) if region_share is None else region_share
        weights = np.array([1 - share, share])
        if (weights[counts == 0] > 0).any():
            raise ValueError(
                f"{self.folder}: {counts[0]} image and {counts[1]} region pairs, expected some of "
                f"both for region_share = {region_share}"
            )
        sums = np.sum([shard.moments for shard in self.shards], axis=0)
        weights = weights / np.maximum(counts, 1)
        mean, square = np.tensordot(weights, sums, axes=1)
        std = np.sqrt(np.maximum(square - mean**2, 0))
        return mean.astype(np.float32), std.astype(np.float32)

    def _strings(self, which: int, rows: Int64[np.ndarray, " b"]) -> list[str]:
        strings = np.empty(len(rows), dtype=object)
        for shard, places, inside in self._by_shard(rows):
            strings[places] = shard.strings(which, inside)
        return strings.tolist()

    def _by_shard(
        self, rows: Int64[np.ndarray, " b"]
    ) -> Iterator[tuple[PairShard, np.ndarray, np.ndarray]]:
        """(shard, places in `rows`, ascending rows of the shard) of the shards that are hit."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"{self.folder}: holds {len(self)} pairs, asked for others")
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self.starts)
        for shard, start, first, stop in zip(
            self.shards, self.starts, cuts, cuts[1:], strict=False
        ):
            if first < stop:
                places = order[first:stop]
                yield shard, places, rows[places] - start


def read_folder(folder: Path) -> dict[str, Manifest]:
    """{shard: its manifest}, sorted by name. FileNotFoundError where there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected the `out` of spatext-embed")
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no *{SUFFIX} in it (a finished shard has one), expected the `out` of "
            "spatext-embed"
        )
    return {path.name.removesuffix(SUFFIX): read_manifest(path) for path in paths}


def common_fingerprint(folder: Path, manifests: dict[str, Manifest]) -> dict[str, str | int]:
    """{clip, scale, embed_dim} of all shards; ValueError where two differ."""
    first = next(iter(manifests))
    expected = {name: manifests[first].fingerprint[name] for name in FINGERPRINT}
    for shard, manifest in manifests.items():
        for name, value in expected.items():
            if (found := manifest.fingerprint[name]) != value:
                raise ValueError(
                    f"{folder}: {shard}{SUFFIX} has {name} {found!r}, {first}{SUFFIX} has "
                    f"{value!r}; expected pairs of one CLIP model"
                )
    return expected


def digest(manifests: dict[str, Manifest]) -> str:
    """Of the contents, in their order: the same wherever the folder lies."""
    sums = [(shard, file["sha256"]) for shard, m in manifests.items() for file in m.files.values()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def allow_open_files(num: int) -> None:
    """Raises this process's soft limit of open files by `num`, as far as the hard one allows: a map
    keeps its file open, and thousands of shards are more than the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + num if hard == resource.RLIM_INFINITY else min(soft + num, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
