"""Perceptual hashes against their definition and against copies; the search against brute force."""

from collections.abc import Iterator
from itertools import combinations
from math import cos, pi

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from pictures import cropped, picture, recompressed
from spatext.datamodules.near_duplicates import (
    KEPT,
    best_agreeing,
    bit_blocks,
    keep_first,
    near_duplicates,
    near_embeddings,
    near_pairs,
    phash,
)


def hash_of(image: Image.Image) -> int:
    return phash(np.asarray(image))


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def test_hash_is_that_of_its_definition() -> None:
    """Plain sums of cosines, where the image is as large as what is transformed."""
    gray = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    wave = np.array([[cos(pi * k * (2 * n + 1) / 64) for n in range(32)] for k in range(8)])
    low = wave @ gray @ wave.T
    bits = "".join("1" if c > np.median(low) else "0" for c in low.reshape(-1))
    assert phash(gray[..., None].repeat(3, axis=2)) == int(bits, 2)


def test_copies_are_near_and_others_are_not() -> None:
    pictures = [picture(seed) for seed in range(12)]
    hashes = [hash_of(image) for image in pictures]
    for image, original in zip(pictures, hashes, strict=True):
        w, h = image.size
        assert distance(hash_of(image.resize((w // 3, h // 3))), original) <= 4
        assert distance(hash_of(recompressed(image)), original) <= 4
        assert distance(hash_of(cropped(image)), original) <= 8
    assert min(distance(a, b) for a, b in combinations(hashes, 2)) > 16


def test_a_photograph_survives_what_the_web_does_to_it() -> None:
    image = Image.fromarray(photographs.astronaut())
    small = recompressed(image.resize((200, 200)).crop((2, 2, 198, 198)))
    assert distance(hash_of(small), hash_of(image)) <= 4


def test_images_of_one_colour_share_a_hash() -> None:
    white, gray = (np.full((40, 30, 3), value, dtype=np.uint8) for value in (255, 101))
    assert phash(white) == phash(gray) == 1 << 63


def planted(num: int, seed: int) -> np.ndarray:
    """Random hashes, a third of them a few bits from another, some equal."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, num, dtype=np.uint64)
    for i in rng.permutation(num)[: num // 3]:
        flipped = rng.permutation(64)[: rng.integers(0, 10)].astype(np.uint64)
        hashes[i] = hashes[rng.integers(num)] ^ np.bitwise_or.reduce(
            np.uint64(1) << flipped, initial=np.uint64(0)
        )
    return hashes


def brute_pairs(hashes: np.ndarray, max_distance: int) -> set[tuple[int, int]]:
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= max_distance
    return {(int(i), int(j)) for i, j in np.argwhere(near) if i < j}


@pytest.mark.parametrize("max_distance", [0, 1, 3, 4, 8, 11])
def test_search_finds_what_brute_force_finds(max_distance: int) -> None:
    hashes = planted(700, max_distance)
    pairs = near_pairs(hashes, max_distance)
    expected = brute_pairs(hashes, max_distance)
    assert len(expected) > 10
    assert len(pairs) == len(expected)  # each once
    assert {(int(i), int(j)) for i, j in pairs} == expected


@pytest.mark.parametrize("num_agreeing", [1, 2, 3, 4])
def test_any_number_of_blocks_is_exact(num_agreeing: int) -> None:
    hashes = planted(300, 5)
    pairs = near_pairs(hashes, 5, num_agreeing)
    assert len(pairs) == len(brute_pairs(hashes, 5))
    assert {(int(i), int(j)) for i, j in pairs} == brute_pairs(hashes, 5)


def test_blocks_share_out_the_bits() -> None:
    for num in (1, 5, 7, 12):
        blocks = bit_blocks(num)
        assert int(np.bitwise_xor.reduce(blocks)) == 2**64 - 1
        widths = np.bitwise_count(blocks)
        assert widths.sum() == 64
        assert widths.max() - widths.min() <= 1


def test_more_blocks_agree_where_there_are_more_hashes() -> None:
    choices = [best_agreeing(num, 4) for num in (100, 100_000, 10**8)]
    assert choices == sorted(choices)
    assert choices[0] < choices[-1]
    assert best_agreeing(10**9, 0) == 1


def test_a_chain_loses_only_what_is_near_to_what_stays() -> None:
    """1 is near 0; 2 is near 1, which is gone, and far from 0: it stays, and takes 3."""
    hashes = np.array([0b0, 0b11, 0b1111, 0b111111, 0b11], dtype=np.uint64)
    assert near_duplicates(hashes, 2).tolist() == [KEPT, 0, KEPT, 2, 0]
    assert near_duplicates(hashes, 0).tolist() == [KEPT, KEPT, KEPT, KEPT, 1]
    assert near_duplicates(hashes[:0], 2).tolist() == []


@pytest.mark.parametrize("seed", [0, 1])
def test_what_goes_is_what_a_plain_loop_lets_go(seed: int) -> None:
    hashes = planted(400, seed)
    expected: list[int] = []
    for i, value in enumerate(hashes.tolist()):
        near = [j for j in range(i) if expected[j] == KEPT and distance(int(hashes[j]), value) <= 5]
        expected.append(near[0] if near else KEPT)
    assert near_duplicates(hashes, 5).tolist() == expected
    assert any(j != KEPT for j in expected)


def test_keeps_the_first_for_which_one_goes() -> None:
    pairs = np.array([[1, 3], [0, 3], [0, 2], [2, 4]], dtype=np.int64)
    assert keep_first(pairs, 5).tolist() == [KEPT, KEPT, 0, 0, KEPT]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """faiss takes torch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_embeddings_by_cosine_whatever_their_length(one_thread: None) -> None:
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((60, 32)).astype(np.float32)
    embeds[20] = 7 * embeds[3] + 0.01
    embeds[40] = embeds[20] * 0.1
    embeds[50] = 0
    embeds[51] = 0
    expected = [KEPT] * 60
    expected[20] = expected[40] = 3
    assert near_embeddings(embeds, 0.95).tolist() == expected
    whole = near_embeddings(embeds, 0.95, kind="IVF4,Flat", search="nprobe=4")
    assert whole.tolist() == expected


def test_another_kind_of_index_is_refused() -> None:
    embeds = np.ones((3, 8), dtype=np.float32)
    with pytest.raises(ValueError, match=r"kind='Nothing', search='': .* expected an index"):
        near_embeddings(embeds, 0.9, kind="Nothing")
