"""Sources that only stream: safe and endless, and labelled as best effort."""

import json
import logging
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatext.datamodules.streaming import StreamingDataModule
from spatext.datamodules.tar_headers import TarFault
from spatext.datamodules.tar_streams import stream_samples
from tars import png, scene, scene_ids, write_scenes, write_shard

PIXEL = png(np.zeros((1, 1, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("shards"), 13)


def make(shards: Any, **options: Any) -> StreamingDataModule:
    options = {
        "image_size": 32, "crop_size": 16, "segmenter": "stored", "batch_size": 4,
        "samples_per_epoch": 24, "buffer_size": 6, **options,
    }  # fmt: skip
    datamodule = StreamingDataModule(shards, **options)
    datamodule.setup("fit")
    return datamodule


def keys(datamodule: StreamingDataModule, num_epochs: int = 1) -> list[str]:
    loader = datamodule.train_dataloader()
    return [key for _ in range(num_epochs) for batch in loader for key in batch["key"]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pipe_is_read(folder: Path, num_workers: int, caplog: pytest.LogCaptureFixture) -> None:
    command = f"pipe:cat {folder}/{{00000..00002}}.tar"
    datamodule = make(command, num_workers=num_workers, random_crop=False, flip=False)
    with caplog.at_level(logging.WARNING):
        loader = datamodule.train_dataloader()
    assert "a resumed run draws others" in caplog.text
    assert len(loader) == 6
    found = list(loader)
    assert len(found) == 6
    for batch in found:
        for key, caption, image in zip(batch["key"], batch["caption"], batch["image"], strict=True):
            number = int(key.split("/")[1])
            assert caption == f"caption {number}"
            red = np.array([0, 50, 100, 150, 200])[scene_ids(number)[:, 8:40]]
            np.testing.assert_array_equal(((image[0] + 1) * 127.5).round(), red)
    places = [place for batch in found for place in batch["index"].tolist()]
    assert len(set(places)) == 24


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_differ_and_reach_everything(folder: Path, num_workers: int) -> None:
    found = keys(make(str(folder / "{00000..00002}.tar"), num_workers=num_workers), 5)
    assert len(found) == 5 * 24
    assert len(set(found)) == 13
    assert len({tuple(found[i : i + 24]) for i in range(0, 120, 24)}) == 5


def test_every_rank_has_as_many_batches_and_draws_of_its_own(folder: Path) -> None:
    class Ranked(StreamingDataModule):
        place = (0, 2)

        def rank(self) -> tuple[int, int]:
            return self.place

    found, places = [], []
    for number in range(2):
        datamodule = Ranked(
            str(folder / "{00000..00002}.tar"), image_size=32, crop_size=16, segmenter=None,
            batch_size=4, samples_per_epoch=25, buffer_size=6,
        )  # fmt: skip
        datamodule.place = (number, 2)
        batches = list(datamodule.train_dataloader())
        assert len(batches) == 3
        found.append([key for batch in batches for key in batch["key"]])
        places += [place for batch in batches for place in batch["index"].tolist()]
    assert found[0] != found[1]
    assert len(set(places)) == 24


def test_a_resumed_run_goes_on_with_other_draws(folder: Path) -> None:
    datamodule = make(str(folder / "{00000..00002}.tar"))
    first = keys(datamodule)
    state = json.loads(json.dumps(datamodule.state_dict()))
    assert state == {"streaming": True, "global_samples": 24}
    resumed = make(str(folder / "{00000..00002}.tar"))
    resumed.load_state_dict(state)
    loader = resumed.train_dataloader()
    batch = next(iter(loader))
    assert batch["index"].tolist() == [24, 25, 26, 27]
    assert batch["key"] != first[:4]
    assert resumed.state_dict()["global_samples"] == 28


def test_a_source_that_breaks_off_mixes_nothing(tmp_path: Path) -> None:
    """The next shard does not complete the sample that the cut one ended in."""
    for name in "ab":
        samples = {str(i): {"png": PIXEL, "txt": f"{name}{i}".encode()} for i in range(4)}
        write_shard(tmp_path / f"{name}.tar", samples)
    cut = tmp_path / "a.tar"
    cut.write_bytes(cut.read_bytes()[: 5 * 1024 + 600])
    datamodule = make(str(tmp_path / "{a,b}.tar"), segmenter=None, max_bad_share=1.0)
    loader = datamodule.train_dataloader()
    for batch in loader:
        for key, caption in zip(batch["key"], batch["caption"], strict=True):
            assert caption == key.replace("/", "")
    assert {reason for reason in loader.bad if reason.startswith("a: cut")}


def test_reasons_go_with_the_sample_that_comes_next(tmp_path: Path) -> None:
    """Each once, however many samples are loaded before a batch is made of them."""
    samples = {"a": scene(0), "b": {**scene(1), "png": b"no image"}, "c": scene(2)}
    path = write_shard(tmp_path / "0.tar", samples)
    dataset = make(str(path), buffer_size=1).train_dataloader().dataset
    found = [(sample["key"], sample["bad"]) for sample in islice(dataset, 6)]
    assert found == [("0/a", []), ("0/c", ["0: not JPEG|PNG|WEBP"])] * 3


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    live = pickle.dumps(Canary())
    bad = {suffix: live for suffix in ("pyd", "pickle", "pth")}
    path = write_shard(tmp_path / "0.tar", {f"{i}": {**scene(i), **bad} for i in range(4)})
    with path.open("rb") as stream:
        raw = list(stream_samples(stream, "0"))
    assert [set(one.members) for one in raw] == [{"png", "txt", "json", "panoptic.png"}] * 4
    assert len(keys(make(str(path)))) == 24
    assert not (tmp_path / "ran").exists()


def test_a_stream_that_is_cut_ends_with_a_fault(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "00000.tar").read_bytes()
    cut = tmp_path / "cut"
    for end in (700, 3000, 9000):
        cut.write_bytes(whole[:end])
        with cut.open("rb") as stream, pytest.raises(TarFault):
            list(stream_samples(stream, "0"))


def test_sources_that_give_nothing_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    for source in (str(tmp_path / "0.tar"), str(tmp_path / "none.tar"), "pipe:false"):
        loader = make(source, max_bad_share=1.0).train_dataloader()
        with pytest.raises(RuntimeError, match="100 sources in a row failed"):
            list(islice(loader, 1))


@pytest.mark.parametrize(
    ("shards", "options", "message"),
    [
        ([], {}, r"datamodule\.shards is empty"),
        ({"a": 1}, {}, "streaming mixes no sets"),
        ("x", {"samples_per_epoch": 0}, "samples_per_epoch is 0, expected 1 or more"),
        ("x", {"buffer_size": 0}, "buffer_size is 0, expected 1 or more"),
    ],
)
def test_wrong_options_are_refused(shards: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(shards, **options)
    with pytest.raises(ValueError, match="is 3, expected at least one global batch of 4"):
        make("x", samples_per_epoch=3).train_dataloader()
