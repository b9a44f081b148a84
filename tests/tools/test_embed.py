import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import webdataset
from omegaconf import DictConfig
from PIL import Image
from torch.nn.functional import normalize

from runs import compose_config
from spatext.datamodules.pair_files import ARRAYS, array_path, manifest_path, read_manifest
from spatext.datamodules.pairs import Pairs
from spatext.datamodules.segmenters import GraphSegmenter
from spatext.tools.embed import embed, full_batches
from tiny import SIZE

TEXTS = {1: "gr\u00fcnes Feld", 2: "\u8d64\u3044\u4e38 \U0001f415", 3: "tiny", 4: ""}


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def draw(number: int, size: tuple[int, int] = (32, 52)) -> tuple[np.ndarray, np.ndarray]:
    """Smooth colours, and ids whose centre square holds 1, 2 and 4 and too little of 3."""
    rng = np.random.default_rng(number)
    h, w = size
    waves = rng.uniform(0.02, 0.2, (3, 2))
    y, x = np.arange(h)[:, None, None], np.arange(w)[:, None]
    pixels = (127.5 + 120 * np.sin(y * waves[:, 0] + x * waves[:, 1] + number)).astype(np.uint8)
    ids = np.zeros(size, dtype=np.uint8)
    ids[2:14, 5:30], ids[16:30, 14 + number :], ids[:3, 40:44], ids[4:14, 33:40] = 1, 2, 3, 4
    return pixels, ids


def sample(number: int, caption: str) -> dict[str, Any]:
    pixels, ids = draw(number)
    entries = [{"id": i, "text": text} for i, text in TEXTS.items()]
    return {
        "__key__": f"{number:03d}",
        "png": png(pixels),
        "txt": caption.encode(),
        "json": json.dumps({"segments": entries}).encode(),
        "panoptic.png": png(ids),
    }


CAPTIONS = ("ein Bild \u00fcber W\u00f6rter", "", "two dogs", "a blue sea", "\u6d77", "a circle")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of two wide images."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with webdataset.TarWriter(str(folder / f"s{shard}.tar"), encoder=False, mtime=0) as tar:
            for number in (2 * shard, 2 * shard + 1):
                tar.write(sample(number, CAPTIONS[number]))
    return folder


def config(workspace: Path, shards: Path | str, out: Path, *overrides: str) -> DictConfig:
    options = [
        f"out={out}",
        f"datamodule.shards={shards}",
        f"datamodule.image_size={SIZE}",
        f"datamodule.crop_size={SIZE}",
        "datamodule.num_workers=0",
        f"clip.name=local-dir:{workspace / 'base' / 'clip'}",
        "clip.pretrained=null",
        "batch_size=4",
        "device=cpu",
        "num_threads=2",
        *overrides,
    ]
    return compose_config("embed", options)


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
    expected = [len(np.unique(GraphSegmenter()(draw(n)[0][:, 10:42]))) for n in range(2)]
    assert manifest.num_regions >= 2
    assert manifest.num_regions <= sum(expected)
    pairs = Pairs(tmp_path / "all")
    assert {pairs.texts(np.flatnonzero(pairs.kinds))[0]} == {""}


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a file that was written again from one that was left."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if path.suffix == ".npy" or path.name.endswith(".pairs.json")
    }


def test_a_run_goes_on_where_it_stopped(workspace: Path, shards: Path, tmp_path: Path) -> None:
    """Stopped by a cut shard after the first, and then inside of the second."""
    some, out = tmp_path / "some", tmp_path / "out"
    some.mkdir()
    for shard in range(3):
        data = (shards / f"s{shard}.tar").read_bytes()
        (some / f"s{shard}.tar").write_bytes(data if shard != 1 else data[:3000])
    with pytest.raises(ValueError, match=r"s1\.tar: (cut|not a complete)"):
        embed(config(workspace, some, out))
    first = state(out)
    assert set(first) == {"s0.pairs.json", *(f"s0.{name}.npy" for name in ARRAYS)}
    assert len(Pairs(out)) == 6

    (some / "s1.tar").write_bytes((shards / "s1.tar").read_bytes())
    array_path(out, "s1", "image_embeds").write_bytes(b"of a process that was killed")
    (out / ".s1.keys.npy.77.tmp").touch()
    assert [m.source["file"] for m in embed(config(workspace, some, out))] == ["s1.tar", "s2.tar"]
    second = state(out)
    assert {name: second[name] for name in first} == first
    straight = tmp_path / "straight"
    embed(config(workspace, shards, straight))
    assert Pairs(out).digest == Pairs(straight).digest

    assert embed(config(workspace, some, out)) == []
    assert state(out) == second


@pytest.mark.parametrize("spoil", ["missing", "cut", "value"])
def test_damaged_shards_are_made_again(
    workspace: Path, shards: Path, tmp_path: Path, spoil: str
) -> None:
    embed(config(workspace, shards, tmp_path))
    digest = Pairs(tmp_path).digest
    path = array_path(tmp_path, "s1", "texts")
    data = path.read_bytes()
    if spoil == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if spoil == "cut" else data[:-1] + b"?")
    options = ["verify=true"] if spoil == "value" else []
    (manifest,) = embed(config(workspace, shards, tmp_path, *options))
    assert manifest.source["file"] == "s1.tar"
    assert path.read_bytes() == data
    assert Pairs(tmp_path).digest == digest


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clip.scale=unit", "fingerprint.scale = 'raw', now 'unit'"),
        ("clip.name=ViT-B-32", "fingerprint.clip = 'local-dir:.*', now 'ViT-B-32'"),
        ("clip.pretrained=laion", "options.pretrained = None, now 'laion'"),
        ("datamodule.min_area=0.02", "options.min_area = 0.05, now 0.02"),
        ("datamodule.crop_size=8", "options.crop_size = 16, now 8"),
        ("datamodule=graph", "options.segmenter = 'stored', now {"),
        ("regions=all", "options.regions = 'text', now 'all'"),
    ],
)
def test_shards_of_other_options_are_refused(
    workspace: Path, done: Path, shards: Path, override: str, message: str
) -> None:
    """Before a model is loaded: of some there is none."""
    before = state(done)
    with pytest.raises(ValueError, match=f"made with {message}.*set overwrite=true"):
        embed(config(workspace, shards / "s0.tar", done, override))
    assert state(done) == before


@pytest.fixture(scope="module")
def done(workspace: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    embed(config(workspace, shards / "s0.tar", folder))
    return folder


def test_another_source_is_refused(
    workspace: Path, done: Path, shards: Path, tmp_path: Path
) -> None:
    other = tmp_path / "s0.tar"
    other.write_bytes((shards / "s0.tar").read_bytes() + bytes(10240))
    with pytest.raises(ValueError, match=r"made with source\.bytes = \d+, now \d+"):
        embed(config(workspace, other, done))


def test_shards_of_other_options_are_overwritten_on_demand(
    workspace: Path, shards: Path, tmp_path: Path
) -> None:
    embed(config(workspace, shards / "s0.tar", tmp_path))
    with pytest.raises(ValueError, match=r"s0\.pairs\.json: made with fingerprint\.scale = 'raw'"):
        # s0 stays in the folder
        embed(config(workspace, shards / "s1.tar", tmp_path, "clip.scale=unit", "overwrite=true"))
    embed(config(workspace, shards, tmp_path, "clip.scale=unit", "overwrite=true"))
    pairs = Pairs(tmp_path)
    assert len(pairs) == 18
    assert pairs.fingerprint["scale"] == "unit"
    norms = np.linalg.norm(pairs.image_embeds(np.arange(18)), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-3)
    manifest_path(tmp_path, "s0").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="found version 99"):
        embed(config(workspace, shards, tmp_path, "clip.scale=unit"))
    (manifest,) = embed(config(workspace, shards, tmp_path, "clip.scale=unit", "overwrite=true"))
    assert manifest == read_manifest(manifest_path(tmp_path, "s0"))


def test_processes_share_the_shards(
    workspace: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    embed(config(workspace, shards, whole))
    first = embed(config(workspace, shards, parts, "shard_rank=0", "num_ranks=2"))
    assert [manifest.source["file"] for manifest in first] == ["s0.tar", "s2.tar"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    second = embed(config(workspace, shards, parts))
    assert [manifest.source["file"] for manifest in second] == ["s1.tar"]
    assert Pairs(parts).digest == Pairs(whole).digest


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
