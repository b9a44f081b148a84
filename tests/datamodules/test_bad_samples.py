"""What the datamodule replaces, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from panoptic_batches import SIZES, assert_same, collect, make
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.segmenters import GraphSegmenter
from tars import scene, write_shard


@pytest.fixture
def one_bad(tmp_path: Path) -> Path:
    samples = {f"{i:06d}": scene(i) for i in range(13)}
    samples["000004"]["png"] = samples["000004"]["png"][:-40]
    write_shard(tmp_path / "00000.tar", samples)
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_sample_is_replaced_and_no_other_moves(
    one_bad: Path, tmp_path_factory: pytest.TempPathFactory, num_workers: int
) -> None:
    clean = tmp_path_factory.mktemp("clean")
    write_shard(clean / "00000.tar", {f"{i:06d}": scene(i) for i in range(13)})
    loader = make(one_bad, num_workers=num_workers, shuffle=False).train_dataloader()
    batch = collect(loader)
    expected = collect(make(clean, shuffle=False).train_dataloader())
    assert_same(batch, collect(make(one_bad, shuffle=False).train_dataloader()))
    assert loader.bad == {"00000: image truncated or invalid": 1}
    assert loader.num_seen == 12
    assert batch["key"][4] != expected["key"][4] == "00000/000004"
    assert batch["index"].tolist() == expected["index"].tolist()
    others = [n for n in range(12) if n != 4]
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(batch[name][others], value[others], rtol=0, atol=0)
        else:
            assert [batch[name][n] for n in others] == [value[n] for n in others]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_above_the_ceiling_the_loader_stops_with_the_counts(
    one_bad: Path, num_workers: int
) -> None:
    kwargs = {"shuffle": False, "num_workers": num_workers}
    message = r"1 bad samples among 8, .*max_bad_share = 0.0: {'00000: image truncated or inv"
    with pytest.raises(RuntimeError, match=message):
        list(make(one_bad, max_bad_share=0.0, **kwargs).train_dataloader())
    assert len(list(make(one_bad, max_bad_share=0.001, **kwargs).train_dataloader())) == 3


def test_replacements_may_be_bad_themselves(tmp_path: Path) -> None:
    samples = {f"{i:06d}": scene(i) for i in range(12)}
    for key in list(samples)[2:]:
        samples[key]["png"] = b"<html>"
    write_shard(tmp_path / "0.tar", samples)
    loader = make(tmp_path, max_bad_share=1.0).train_dataloader()
    assert set(collect(loader)["key"]) == {"0/000000", "0/000001"}
    assert loader.bad["0: not JPEG|PNG|WEBP"] > 10  # more than there are: draws failed as well


def test_nothing_but_bad_samples_ends(tmp_path: Path) -> None:
    sample = {**scene(0), "png": b"<html>"}
    write_shard(tmp_path / "0.tar", {str(i): sample for i in range(4)})
    with pytest.raises(RuntimeError, match="100 bad samples in a row"):
        list(make(tmp_path).train_dataloader())


def test_stored_mode_without_id_maps_says_what_to_do(tmp_path: Path) -> None:
    sample = scene(0)
    del sample["panoptic.png"]
    write_shard(tmp_path / "00000.tar", {"a": scene(1), "b": sample, "c": scene(2)})
    with pytest.raises(ValueError, match=r"00000\.tar: sample b has no b\.panoptic\.png") as error:
        make(tmp_path)
    message = str(error.value)
    assert "1 of 3 samples" in message
    assert "datamodule=graph, mask2former, oneformer or eomt" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k_min": 4}, "k_min = 4, datamodule.k_max = 3"),
        ({"k_max": 256}, "k_max = 256"),
        ({"k_min": 0, "k_max": 0}, "k_max = 0"),
        ({"min_area": 5.0}, "min_area = 5.0"),
        ({"things": False, "stuff": False}, "both off"),
        ({"segmenter": "graph"}, "segmenter is 'graph'"),
        (
            {"segmenter": GraphSegmenter(), "stuff": False},
            'need datamodule.segmenter = "stored" or a pan',
        ),
    ],
)
def test_wrong_options_are_refused_at_once(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PanopticDataModule("none", **{"segmenter": "stored", **SIZES, **kwargs})
