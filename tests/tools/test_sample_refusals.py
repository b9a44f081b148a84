"""What spatext-sample refuses, before a checkpoint is read."""

from pathlib import Path

import pytest

from samples import sample


def test_a_size_that_the_model_cannot_halve_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    scene = tmp_path / "odd.yaml"
    scene.write_text("{prompt: a dusk sky, size: [16, 18], regions: []}")
    message = "scene odd: size 16x18, expected multiples of 4 for this model"
    with pytest.raises(ValueError, match=message):
        sample(checkpoint, scene, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("num_images=0", "num_images: found 0, expected a whole number"),
        ("num_images=1.5", "num_images: found 1.5, expected a whole number"),
        ("batch_size=0", "batch_size: found 0, expected a whole number"),
        ("seed=1.5", "seed: found 1.5, expected a whole number, or none"),
        ("seed=-1", "seed: found -1 for 1 images of scene square, expected 0 <= seed"),
        (f"seed={2**63}", r"and seed \+ num_images <= 2\^63"),
        ("device=tpu", "device=tpu: expected auto, cpu, cuda or cuda:N"),
        ("sampling.scheduler=DDMI", "sampling.scheduler: found 'DDMI', expected the name"),
        ("scale_grid.text=[0,1]", "scale_grid.segments: found None, expected a list of numbers"),
        ("scale_grid={text:[0,0.0],segments:[1]}", r"scale_grid.text: found \[0, 0.0\]"),
        ("scale_grid={text:[],segments:[1]}", r"scale_grid.text: found \[\]"),
        ("scale_grid={text:[1],segments:[-1]}", r"scale_grid.segments: found \[-1\]"),
        ("scale_grid={text:[1],segments:[.nan]}", r"scale_grid.segments: found \['.nan'\]"),
        ("scale_grid={text:[1],segments:[nan]}", r"scale_grid.segments: found \[nan\]"),
        ("scale_grid={text:3,segments:[1]}", "scale_grid.text: found 3, expected a list"),
        ("scale_grid=5", "scale_grid: found 5, expected text and segments"),
    ],
)
def test_wrong_options(scenes: Path, tmp_path: Path, option: str, message: str) -> None:
    """Before the checkpoint is looked at, which is missing here."""
    options = (option, "device=cpu") if "device" not in option else (option,)
    with pytest.raises(ValueError, match=message):
        sample(tmp_path / "none.ckpt", scenes, tmp_path / "out", *options)


def test_no_scene(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected scenes"):
        sample(tmp_path / "none.ckpt", tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="expected scenes"):
        sample(tmp_path / "none.ckpt", f"{tmp_path}/*.json", tmp_path / "out")


def test_a_folder_that_takes_no_files(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out=/proc/x: .*, expected a folder to write"):
        sample(tmp_path / "none.ckpt", scenes, Path("/proc/x"))


def test_a_file_is_no_folder_to_write_to(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ValueError, match=f"out={out}: Not a directory, expected a folder"):
            sample(tmp_path / "none.ckpt", scenes, out)
