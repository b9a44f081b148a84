"""A folder of embeddings that is there already: gone on with, repaired, refused."""

from pathlib import Path

import numpy as np
import pytest

from embedded import config
from spatext.datamodules.pair_files import ARRAYS, array_path, manifest_path, read_manifest
from spatext.datamodules.pairs import Pairs
from spatext.tools.embed import embed


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
