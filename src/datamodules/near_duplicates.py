"""Images that are nearly the same: perceptual hashes a few bits apart, embeddings a small angle.

Of each group that which comes first stays. Nothing is dropped for the sake of what is itself
dropped, so chains of small differences do not take distant images with them.
"""

from collections.abc import Iterator
from importlib import import_module
from itertools import combinations, pairwise
from math import comb, log2
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8, UInt64
from PIL import Image
from scipy.fft import dctn

BITS = 64
SIDE, LOWEST = 32, 8  # pixels of a side that are transformed, and frequencies of them that count
DECIMALS = 6  # of a coefficient: what lies below is rounding, which differs between machines
MAX_DISTANCE = 16  # the search gets slow beyond, and unlike images that far apart are common
MAX_AGREEING = 4
QUERIES = 1024  # embeddings at a time
KEPT = -1

Originals = Int64[np.ndarray, " n"]


def phash(pixels: UInt8[np.ndarray, "h w 3"]) -> int:
    """64 bits: which of the 8 x 8 lowest frequencies of the gray image exceed their median.

    DCT-II of 32 x 32 pixels (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", with the median of all 64). Bits by rows, the first highest, as
    imagehash.phash has them; scipy has the transform, so that no library is needed for it. Images
    of one colour, whichever, share a hash: they have no frequencies.
    """
    gray = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(gray, dtype=np.float64), type=2)[:LOWEST, :LOWEST].round(DECIMALS)
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def near_duplicates(hashes: UInt64[np.ndarray, " n"], max_distance: int) -> Originals:
    """For each hash the first one that is kept and differs in at most `max_distance` bits; KEPT
    where there is none."""
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)  # unique hashes by their first appearance
    first = first[order]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    which = place[inverse.reshape(-1)]
    found = keep_first(near_pairs(unique[order], max_distance), len(unique))
    heads = np.where(found == KEPT, np.arange(len(unique)), found)
    originals = first[heads[which]].astype(np.int64)
    originals[originals == np.arange(len(hashes))] = KEPT
    return originals


def near_pairs(
    hashes: UInt64[np.ndarray, " n"], max_distance: int, num_agreeing: int | None = None
) -> Int64[np.ndarray, "p 2"]:
    """All (i, j), i < j, whose hashes differ in at most `max_distance` bits, each pair once.

    Exact, without comparing all with all (Manku, Jain and Das Sarma 2007, "Detecting
    Near-Duplicates for Web Crawling", sec. 3): of d + k blocks of bits two hashes at most d apart
    agree in k, so that sorting by each choice of k blocks brings them next to one another.
    `num_agreeing` is k; None: what costs least. The cost rises with the number of pairs: equal
    hashes should come once.
    """
    assert 0 <= max_distance <= MAX_DISTANCE, max_distance
    num_agreeing = num_agreeing or best_agreeing(len(hashes), max_distance)
    blocks = bit_blocks(max_distance + num_agreeing)
    parts = [np.empty((0, 2), dtype=np.int64)]
    for choice in combinations(range(len(blocks)), num_agreeing):
        mask = np.bitwise_or.reduce(blocks[list(choice)])
        # A pair is found by every choice of blocks in which it agrees: the first one counts.
        earlier = [blocks[i] for i in range(choice[-1]) if i not in choice]
        for left, right in neighbours(hashes & mask):
            differing = hashes[left] ^ hashes[right]
            near = np.bitwise_count(differing) <= max_distance
            left, right, differing = left[near], right[near], differing[near]
            for block in earlier:
                new = (differing & block) != 0
                left, right, differing = left[new], right[new], differing[new]
            parts.append(np.stack([np.minimum(left, right), np.maximum(left, right)], axis=1))
    return np.concatenate(parts)


def neighbours(keys: UInt64[np.ndarray, " n"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of places that have equal keys, in parts of at most n pairs."""
    order = np.argsort(keys, kind="stable")
    runs = keys[order]
    ends = np.searchsorted(runs, runs, side="right")
    left, lag = np.arange(len(keys)), 1
    while len(left := left[left + lag < ends[left]]):
        yield order[left], order[left + lag]
        lag += 1


def bit_blocks(num: int) -> UInt64[np.ndarray, " m"]:
    """Masks of `num` blocks that share out the bits as evenly as possible."""
    bounds = [BITS * i // num for i in range(num + 1)]
    masks = [(1 << high) - (1 << low) for low, high in pairwise(bounds)]
    return np.array(masks, dtype=np.uint64)


def best_agreeing(num_hashes: int, max_distance: int) -> int:
    """The k with the least to sort and compare, were the hashes random."""
    if not max_distance:
        return 1

    def cost(k: int) -> float:
        together = num_hashes / 2.0 ** (BITS * k // (max_distance + k))
        return comb(max_distance + k, k) * (log2(num_hashes + 2) + together)

    return min(range(1, MAX_AGREEING + 1), key=cost)


def near_embeddings(
    embeds: Float32[np.ndarray, "n d"], min_cosine: float, *, kind: str = "Flat", search: str = ""
) -> Originals:
    """As `near_duplicates`, by the cosine between embeddings, of at least `min_cosine`.

    `kind`: a string of faiss's index factory. "Flat" is exact, n^2 d / 2 products; for millions of
    rows "IVF4096,Flat" (about 4 sqrt(n) cells) with `search` = "nprobe=16", which may miss some.
    Rows of zeros are near to nothing.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    norms = np.linalg.norm(embeds, axis=1, keepdims=True)
    unit = np.ascontiguousarray(embeds / np.maximum(norms, 1e-12), dtype=np.float32)
    try:
        index = faiss.index_factory(unit.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(unit)
        if search:
            faiss.ParameterSpace().set_index_parameters(index, search)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(": ")[2]
        raise ValueError(
            f"kind={kind!r}, search={search!r}: {reason}; expected an index of faiss for "
            f"{len(embeds)} rows such as 'Flat', or 'IVF256,Flat' with 'nprobe=16'"
        ) from None
    index.add(unit)
    parts = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(unit), QUERIES):
        limits, _, found = index.range_search(unit[start : start + QUERIES], min_cosine)
        rows = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(np.int64))
        pairs = np.stack([found, rows], axis=1)
        parts.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return keep_first(np.concatenate(parts), len(embeds))


def keep_first(pairs: Int64[np.ndarray, "p 2"], num: int) -> Originals:
    """Of pairs (i, j), i < j, that are alike: j goes for the first i that stays."""
    originals = [KEPT] * num
    for i, j in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if originals[j] == KEPT and originals[i] == KEPT:
            originals[j] = i
    return np.array(originals, dtype=np.int64)


def import_faiss() -> Any:
    """ValueError where it is missing: the package does not require it."""
    try:
        return import_module("faiss")
    except ModuleNotFoundError:
        raise ValueError(
            "faiss: not installed, expected for near duplicates by embedding: pip install "
            "'spatext[retrieval]'"
        ) from None
