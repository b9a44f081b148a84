"""spatext-annotate in this process, composed as users do it."""

import logging
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from annotated import call, contents, write_pictures
from datamodules.tars import write_scenes
from runs import compose_config
from spatext.datamodules.annotation_files import manifest_path, read_manifest, sidecar_path
from spatext.datamodules.annotation_leases import Leases
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.segmenters import GraphSegmenter
from spatext.tools.annotate import COMMANDS
from spatext.tools.annotate_engine import build_engine
from spatext.tools.annotate_recipe import described, digest
from tiny import SIZE
from tiny_panoptic import INPUT_SIZE, THINGS, write_model


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "shards")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each image that the graph segmenter is asked about."""
    calls: list[int] = []
    original = GraphSegmenter.__call__

    def count(self: GraphSegmenter, pixels: Any) -> Any:
        calls.append(1)
        return original(self, pixels)

    monkeypatch.setattr(GraphSegmenter, "__call__", count)
    return calls


def test_what_is_done_is_not_done_again(
    shards: Path, counted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", shards) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 shards annotated, 0 were done, ")
    assert "12 images with " in out
    assert len(counted) == 12
    before = contents(shards / "annotations")
    assert len(before) == 6
    assert call("run", shards) == 0
    assert capsys.readouterr().out == "0 shards annotated, 3 were done\n"
    manifest_path(shards / "annotations", "s1").unlink()
    assert call("run", shards) == 0
    assert capsys.readouterr().out.startswith("1 shards annotated, 2 were done")
    assert len(counted) == 16
    assert contents(shards / "annotations") == before


def test_a_changed_shard_is_annotated_again(
    shards: Path, counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """One that was merely copied is not."""
    call("run", shards)
    copied = (shards / "s1.tar").read_bytes()
    (shards / "s1.tar").write_bytes(copied)
    shutil.copy(shards / "s0.tar", shards / "s2.tar")
    counted.clear()
    with caplog.at_level(logging.WARNING):
        assert call("run", shards) == 0
    assert len(counted) == 4
    assert "s2.annotation.json: s2.tar has changed; annotated again" in caplog.text
    assert caplog.text.count("annotated again") == 1
    assert read_manifest(manifest_path(shards / "annotations", "s2")).num_images == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("datamodule.segmenter.max_segments=3", "segmenter.max_segments = 6, now 3"),
        ("datamodule.crop_size=300", "min_side = 896, now 1200"),
        ("embeds=true", "embeds = None, now {"),
    ],
)
def test_another_recipe_is_refused(
    shards: Path, workspace: Path, counted: list[int], change: str, message: str
) -> None:
    call("run", shards)
    options = ["+datamodule.segmenter.max_segments=3"] if "segmenter" in change else [change]
    options += [f"clip.name=local-dir:{workspace / 'base' / 'clip'}", "clip.pretrained=null"]
    counted.clear()
    before = contents(shards / "annotations")
    with pytest.raises(ValueError, match=r"recipe\.json: made with ") as told:
        call("run", shards, *options)
    assert message in str(told.value)
    assert str(told.value).endswith("set overwrite=true or choose another out")
    assert (contents(shards / "annotations"), counted) == (before, [])


def test_a_sidecar_of_another_recipe_is_refused_or_overwritten(
    shards: Path, counted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that has found its way into the folder, and those of a folder that is made anew."""
    other = "+datamodule.segmenter.max_segments=2"
    call("run", shards)
    call("run", shards / "s0.tar", f"out={shards / 'other'}", other)
    for name in contents(shards / "other"):
        shutil.copy(shards / "other" / name, shards / "annotations" / name)
    with pytest.raises(ValueError, match=r"s0\.annotation\.json: made with segmenter.max_segments"):
        call("run", shards)
    with pytest.raises(ValueError, match=r"s0\.annotation\.json: made with segmenter.max_segments"):
        call("run", shards / "s1.tar")
    assert call("verify", shards) == 2
    counted.clear()
    assert call("run", shards, other, "overwrite=true") == 0
    assert len(counted) == 8
    capsys.readouterr()
    assert call("verify", shards) == 0
    assert capsys.readouterr().out == "3 of 3 shards are annotated, and whole\n"
    with pytest.raises(ValueError, match=r"segmenter\.max_segments = 2, now 6"):
        call("run", shards)


def test_changed_weights_under_the_same_name_are_refused(shards: Path, tmp_path: Path) -> None:
    model = write_model("mask2former", tmp_path / "model")
    options = [
        "datamodule=mask2former",
        f"datamodule.segmenter.name={model}",
        f"datamodule.segmenter.input_size={INPUT_SIZE}",
        f"datamodule.segmenter.things={THINGS}",
        "datamodule.segmenter.object_threshold=0.5",
        "datamodule.segmenter.overlap_threshold=0.1",
    ]
    assert call("run", shards, *options) == 0
    manifest = read_manifest(manifest_path(shards / "annotations", "s0"))
    assert manifest.recipe["segmenter"]["weights"] == {"name": digest(model)}
    assert manifest.num_segments > 0
    datamodule = PanopticDataModule(shards, image_size=SIZE, crop_size=SIZE, segmenter="stored")
    datamodule.setup("fit")
    assert any(
        text for batch in datamodule.train_dataloader() for ts in batch["texts"] for text in ts
    )
    (weights,) = model.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"recipe\.json: made with segmenter\.weights\.name = "):
        call("run", shards, *options)


def test_embeddings_of_clip(shards: Path, workspace: Path) -> None:
    """Of a crop cut from the image as it was segmented, in half precision."""
    clip = [f"clip.name=local-dir:{workspace / 'base' / 'clip'}", "clip.pretrained=null"]
    options = ["embeds=true", "max_regions=2", f"datamodule.crop_size={SIZE}", *clip]
    assert call("run", shards, *options) == 0
    manifest = read_manifest(manifest_path(shards / "annotations", "s0"))
    assert manifest.recipe["embeds"]["scale"] == "raw"
    assert list(manifest.recipe["embeds"]["weights"]) == ["name"]
    config = compose_config(
        "annotate", [f"datamodule.shards={shards}", "datamodule=graph", *options]
    )
    net = instantiate(config.clip)
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    embedder = build_engine(plain, "cpu").embedder
    assert embedder is not None
    crops = torch.randint(0, 256, (40, 3, SIZE, SIZE), dtype=torch.uint8)
    torch.testing.assert_close(embedder(crops), net.embed_images(crops), atol=1e-5, rtol=1e-5)


def test_shards_of_others_are_left_to_them(
    shards: Path, counted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    leases = Leases(shards / "annotations")
    assert leases.take("s1") is not None
    assert call("run", shards) == 0
    assert "1 shards are with other processes" in capsys.readouterr().out
    assert len(counted) == 8
    leases.close()
    assert call("run", shards) == 0
    assert len(counted) == 12
    assert not list((shards / "annotations" / ".leases").glob("*.lease"))


def test_damage_is_told_and_the_other_shards_are_done(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (shards / "s1.tar").read_bytes()
    (shards / "s1.tar").write_bytes(data[: len(data) // 2])
    (shards / "s0.tar").rename(shards / "s3.tar")
    (shards / "s0.tar").mkdir()
    assert call("run", shards) == 2
    out = capsys.readouterr().out
    assert out.startswith("2 shards annotated")
    assert f"  failed: [Errno 21] Is a directory: '{shards / 's0.tar'}'" in out
    assert "s1.tar: cut " in out
    (shards / "s0.tar").rmdir()
    assert call("run", shards, "allow_damaged=true") == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["datamodule=panoptic"], "datamodule.segmenter: found 'stored', expected one that finds"),
        (["threads=0"], "threads=0: expected 1 or more"),
        (["autocast=half"], "autocast=half: expected bfloat16, float16 or null"),
        (["device=cuda"], "device=cuda: found no GPU, expected auto or cpu"),
        (["datamodule=eomt", "datamodule.segmenter.name=/none"], "found no panoptic model '/none'"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    shards: Path, overrides: list[str], message: str
) -> None:
    if "device=cuda" in overrides and torch.cuda.is_available():
        return
    with pytest.raises(ValueError, match=message):
        call("run", shards, *overrides)
    assert not list((shards / "annotations").rglob("*.tar"))


def test_pairs_are_nothing_to_annotate(tmp_path: Path) -> None:
    options = ["datamodule=pairs", f"datamodule.pairs={tmp_path}"]
    with pytest.raises(ValueError, match=r"datamodule: found nothing to annotate, expected data"):
        COMMANDS["run"](compose_config("annotate", options))


def test_names_that_collide_are_refused(shards: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "more", 2)
    (tmp_path / "more" / "00000.tar").rename(tmp_path / "more" / "s0.tar")
    both = f"[{shards},{tmp_path / 'more'}]"
    with pytest.raises(ValueError, match="have one name, by which sidecars are kept"):
        call("run", both, f"out={tmp_path / 'out'}")
    with pytest.raises(ValueError, match="holds the shards themselves"):
        call("run", shards, f"out={shards}")
    assert call("run", both) == 0
    assert sidecar_path(tmp_path / "more" / "annotations", "s0").exists()


def test_a_component_is_described_with_its_defaults() -> None:
    target = "spatext.datamodules.segmenters.GraphSegmenter"
    found = described({"_target_": target, "sigma": 0.5})
    assert (found["class"], found["sigma"], found["max_segments"]) == (target, 0.5, 6)
    assert found["weights"] == {}
