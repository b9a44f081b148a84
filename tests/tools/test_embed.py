from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import webdataset
from PIL import Image
from torch.nn.functional import normalize

from embedded import CAPTIONS, TEXTS, config, draw, sample
from spatext.datamodules.pair_files import manifest_path
from spatext.datamodules.pairs import Pairs
from spatext.datamodules.segmenters import GraphSegmenter
from spatext.tools.embed import embed, full_batches
from tiny import SIZE


def cut_out(number: int, segment: int | None) -> Image.Image:
    """Centre square; of a segment the tight square with black around, by PIL's own means."""
    pixels, ids = draw(number)
    image = Image.fromarray(pixels).crop((10, 0, 42, 32))
    if segment is None:
        return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    mask = Image.fromarray(((ids == segment) * 255).astype(np.uint8)).crop((10, 0, 42, 32))
    box = mask.getbbox()
    assert box is not None
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0)
    black = Image.new("RGB", (side, side))
    # where the square cannot be centred it lies half a pixel to the top or left
    corner = ((side - (x1 - x0) + 1) // 2, (side - (y1 - y0) + 1) // 2)
    black.paste(image.crop(box), corner, mask.crop(box))
    return black.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_embeddings_are_those_of_open_clip(
    workspace: Path, shards: Path, tmp_path: Path, scale: str
) -> None:
    embed(config(workspace, shards, tmp_path, f"clip.scale={scale}"))
    pairs = Pairs(tmp_path)
    expected = [
        (f"s{number // 2}/{number:03d}{'' if segment is None else f'#{segment}'}", number, segment)
        for number in range(6)
        for segment in (None, 1, 2)
    ]
    rows = np.arange(len(pairs))
    assert pairs.keys(rows) == [key for key, _, _ in expected]
    texts = [CAPTIONS[number] if s is None else TEXTS[s] for _, number, s in expected]
    assert pairs.texts(rows) == texts
    assert pairs.is_region(rows).tolist() == [segment is not None for _, _, segment in expected]

    name = f"local-dir:{workspace / 'base' / 'clip'}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    inputs = torch.stack([transform(cut_out(number, segment)) for _, number, segment in expected])
    with torch.no_grad():
        embeds = model.eval().encode_image(inputs)
    if scale == "unit":
        embeds = normalize(embeds, dim=-1)
    np.testing.assert_allclose(pairs.image_embeds(rows), embeds.numpy(), rtol=2e-3, atol=1e-3)
    assert np.diff(embeds.numpy(), axis=0).std(axis=0).min() > 1e-2
    fingerprint = {"clip": name, "scale": scale, "embed_dim": embeds.shape[1]}
    assert pairs.fingerprint == fingerprint


def test_regions_to_choose_from(workspace: Path, shards: Path, tmp_path: Path) -> None:
    def keys(name: str, *overrides: str) -> list[str]:
        embed(config(workspace, shards / "s0.tar", tmp_path / name, *overrides))
        pairs = Pairs(tmp_path / name)
        return [key.removeprefix("s0/") for key in pairs.keys(np.arange(len(pairs)))]

    assert keys("none", "regions=none") == ["000", "001"]
    both = [f"00{n}{end}" for n in (0, 1) for end in ("", "#1", "#2", "#4")]
    assert keys("all", "regions=all") == both
    small = keys("small", "regions=all", "datamodule.min_area=0.001")
    assert small == [f"00{n}{end}" for n in (0, 1) for end in ("", "#1", "#2", "#3", "#4")]
    assert keys("largest", "max_regions=1") == ["000", "000#2", "001", "001#2"]


def test_segments_of_a_segmenter(
    workspace: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They have no texts, which is said; with regions=all they have pairs all the same."""
    embed(config(workspace, shards / "s0.tar", tmp_path / "text", "datamodule=graph"))
    assert "only whole images" in caplog.text
    assert not Pairs(tmp_path / "text").kinds.any()
    (manifest,) = embed(
        config(workspace, shards / "s0.tar", tmp_path / "all", "datamodule=graph", "regions=all")
    )
    expected = [len(np.unique(GraphSegmenter()(draw(n)[0])[:, 10:42])) for n in range(2)]
    assert manifest.num_regions >= 2
    assert manifest.num_regions <= sum(expected)
    pairs = Pairs(tmp_path / "all")
    assert {pairs.texts(np.flatnonzero(pairs.kinds))[0]} == {""}


def test_workers_and_size_of_batches_change_nothing(
    workspace: Path, shards: Path, tmp_path: Path
) -> None:
    embed(config(workspace, shards, tmp_path / "one"))
    options = ("datamodule.num_workers=2", "batch_size=7")
    embed(config(workspace, shards, tmp_path / "other", *options))
    one, other = Pairs(tmp_path / "one"), Pairs(tmp_path / "other")
    rows = np.arange(len(one))
    assert one.keys(rows) == other.keys(rows)
    np.testing.assert_allclose(one.image_embeds(rows), other.image_embeds(rows), atol=2e-3)


def test_autocast_is_near(workspace: Path, shards: Path, tmp_path: Path) -> None:
    embed(config(workspace, shards, tmp_path / "full"))
    embed(config(workspace, shards, tmp_path / "half", "autocast=bfloat16"))
    rows = np.arange(18)
    full, half = (Pairs(tmp_path / name).image_embeds(rows) for name in ("full", "half"))
    np.testing.assert_allclose(half, full, atol=0.03 * np.abs(full).max())
    assert (full != half).any()


def bad_shard(folder: Path, num: int, num_bad: int) -> Path:
    path = folder / "bad.tar"
    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as tar:
        for number in range(num):
            members = sample(number % 6, "text") | {"__key__": f"{number:03d}"}
            tar.write(members | {"png": members["png"][:-60]} if number < num_bad else members)
    return path


def test_bad_samples_are_left_out_and_counted(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole batch of the loader, and one."""
    shard = bad_shard(tmp_path, 35, 33)
    options = ("datamodule.max_bad_share=0.05", "regions=none")
    (manifest,) = embed(config(workspace, shard, tmp_path / "out", *options))
    assert manifest.bad == {"image truncated or invalid": 33}
    assert (manifest.num_images, manifest.num_regions) == (2, 0)
    assert Pairs(tmp_path / "out").keys(np.arange(2)) == ["bad/033", "bad/034"]
    assert "2 image pairs, 0 region pairs, 33 samples left out" in capsys.readouterr().out


def test_too_many_bad_samples_stop_it(workspace: Path, tmp_path: Path) -> None:
    shard = bad_shard(tmp_path, 6, 2)
    with pytest.raises(RuntimeError, match="2 bad samples among 6, over datamodule"):
        embed(config(workspace, shard, tmp_path / "out", "datamodule.max_bad_share=0.001"))
    assert not manifest_path(tmp_path / "out", "bad").exists()


def test_a_shard_of_bad_samples_alone_is_done_and_empty(workspace: Path, tmp_path: Path) -> None:
    shard = bad_shard(tmp_path, 3, 3)
    (manifest,) = embed(config(workspace, shard, tmp_path / "out"))
    assert len(manifest) == 0
    assert embed(config(workspace, shard, tmp_path / "out")) == []


def test_missing_id_maps_are_told(workspace: Path, tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "s.tar"), encoder=False) as tar:
        members = sample(0, "text")
        del members["panoptic.png"]
        tar.write(members)
    with pytest.raises(ValueError, match=r"sample 000 has no 000\.panoptic\.png .*regions=none"):
        embed(config(workspace, tmp_path / "s.tar", tmp_path / "out"))
    (manifest,) = embed(config(workspace, tmp_path / "s.tar", tmp_path / "out", "regions=none"))
    assert manifest.num_images == 1


class DeviceFinder:
    input_size = 8

    def segment(self, pixels: torch.Tensor, sizes: list[tuple[int, int]]) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["datamodule.segmenter={_target_: test_embed.DeviceFinder}"],
            "datamodule.segmenter: found a panoptic model, expected stored segments",
        ),
        (["regions=some"], "regions=some: expected one of text, all, none"),
        (["autocast=half"], "autocast=half: expected bfloat16, float16 or null"),
        (["batch_size=0"], "batch_size=0: expected 1 or more"),
        (["shard_rank=1"], "shard_rank and num_ranks: found one of them"),
        (["shard_rank=2", "num_ranks=2"], "shard_rank=2: expected 0 or more and less than"),
        (["clip.scale=???"], "missing clip.scale"),
    ],
)
def test_wrong_options_are_refused_before_work(
    workspace: Path, shards: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        embed(config(workspace, shards, tmp_path, *overrides))


def test_shards_of_one_name_are_refused(workspace: Path, shards: Path, tmp_path: Path) -> None:
    both = f"[{shards / 's0.tar'},{tmp_path / 's0.tar'}]"
    (tmp_path / "s0.tar").touch()
    with pytest.raises(ValueError, match="have one name"):
        embed(config(workspace, both, tmp_path / "out"))


@pytest.mark.parametrize("sizes", [[3, 1, 0, 9, 2], [4, 4], [0], []])
def test_full_batches_are_the_same_rows(sizes: list[int]) -> None:
    rows = torch.arange(sum(sizes))
    found = list(full_batches(rows.split(sizes) if sizes else (), 4))
    assert torch.cat([*found, rows[:0]]).tolist() == rows.tolist()
    assert [len(part) for part in found[:-1]] == [4] * (len(found) - 1)
    assert all(0 < len(part) <= 4 for part in found)
