"""What trackers and the disk hold of a run: one training, and its resume, read back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs import latent, make_workspace, read_metrics, run
from spatext.callbacks.curves import read_curves
from tables import read_rows
from tiny import SIZE
from wandb_logs import OfflineRun, offline_runs

NUM_STEPS = 4  # an epoch, and the validation after it
SCENE = """
prompt: two dogs
size: 16
seed: {seed}
regions:
- {{text: a red circle, box: [0, 0, 16, 6]}}
- {{text: a blue sea, box: [2, 8, 12, 16]}}
"""
PAIRS = "[{text: 2.0, segments: 0.0}, {text: 2.0, segments: 5.0}]"
TITLES = ["text 2, segments 0", "text 2, segments 5"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    (workspace / "scenes").mkdir()
    for seed, name in enumerate(("first", "second")):
        (workspace / "scenes" / f"{name}.yaml").write_text(SCENE.format(seed=seed))
    return workspace


@pytest.fixture(scope="module")
def run_dir(workspace: Path) -> Path:
    """Trained for an epoch, and resumed for another."""
    run_dir = workspace / "run"
    options = latent(
        workspace,
        run_dir,
        "logger=many",
        "logger.wandb.tags=[tiny]",
        "+hf_token=abc",
        "sweep_name=grid",
        "callbacks=[scene_grid,histograms,artifacts]",
        f"callbacks.scene_grid.scenes={workspace / 'scenes'}",
        "callbacks.scene_grid.sampling.form=full",
        "callbacks.scene_grid.sampling.num_steps=2",
        f"callbacks.scene_grid.scales={PAIRS}",
        "callbacks.scene_grid.num_seeds=1",
        "callbacks.histograms.every_n_steps=2",
        "callbacks.checkpoint.every_n_train_steps=100",
        "callbacks.checkpoint.monitor=val/loss",
        "trainer.log_every_n_steps=1",
        f"callbacks.curves={{_target_: spatext.callbacks.curves.Curves, folder: {run_dir}}}",
    )
    wandb.teardown()  # it reads its environment once a process
    run([*options, f"trainer.max_steps={NUM_STEPS}"])
    run([*options, f"trainer.max_steps={2 * NUM_STEPS}", "resume=true"])
    return run_dir


@pytest.fixture(scope="module")
def both(run_dir: Path) -> list[OfflineRun]:
    return offline_runs(run_dir)


# --- W&B -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_run_in_two_parts(run_dir: Path, both: list[OfflineRun]) -> None:
    assert len(both) == 2
    name = (run_dir / "wandb_run_id.txt").read_text()
    assert [part.run.run_id for part in both] == [name] * 2
    for part in both:
        assert (part.run.display_name, part.run.run_group) == ("demo-latent-run", "grid")
        assert [*part.run.tags] == ["tiny"]
        assert part.exit_code == 0


@pytest.mark.slow
def test_configuration_is_plain(run_dir: Path, both: list[OfflineRun]) -> None:
    config = both[0].config
    assert config["datamodule"]["batch_size"] == 4
    assert config["trainer"]["max_steps"] == NUM_STEPS
    assert config["hf_token"] == "***"
    assert config["provenance"] == json.loads((run_dir / "provenance.json").read_text())
    assert both[1].config["resume"] is True


@pytest.mark.slow
def test_scalars_are_those_of_the_table(run_dir: Path, both: list[OfflineRun]) -> None:
    for part, name in zip(both, ("metrics-1.csv", "metrics.csv"), strict=True):
        expected = read_metrics(run_dir, name)
        for metric in ("train/loss", "train/grad_norm", "val/loss", "lr-AdamW"):
            assert part.logged(metric) == pytest.approx(expected[metric])
    assert list(both[0].logged("train/loss")) == [0, 1, 2, 3]
    assert list(both[1].logged("train/loss")) == [4, 5, 6, 7]


@pytest.mark.slow
def test_samples_have_their_regions(both: list[OfflineRun]) -> None:
    for part, step in zip(both, (NUM_STEPS, 2 * NUM_STEPS), strict=True):
        (row,) = [row for row in part.history if "val/scenes/count" in row]
        assert row["trainer/global_step"] == step
        assert row["val/scenes/count"] == 4
        assert row["val/scenes/captions"] == [
            f"{name}, seed {seed}: {title}"
            for seed, name in enumerate(("first", "second"))
            for title in TITLES
        ]
        files = part.folder / "files"
        shown = [np.asarray(Image.open(files / path)) for path in row["val/scenes/filenames"]]
        assert [image.shape for image in shown] == [(SIZE, SIZE, 3)] * 4
        assert (shown[0] != shown[1]).mean() > 0.1  # the scales differ
        expected = np.zeros((SIZE, SIZE), dtype=np.uint8)
        expected[:6], expected[8:, 2:12] = 1, 2
        for masks in row["val/scenes/all_masks"]:
            mask = np.asarray(Image.open(files / masks["regions"]["path"]))
            np.testing.assert_array_equal(mask, expected)
        labels = part.config["_wandb"]["mask/class_labels"]
        (found,) = [label["value"] for label in labels.values()]
        assert found == {"0": "unpainted", "1": "a red circle", "2": "a blue sea"}


@pytest.mark.slow
def test_table_of_scenes_and_scales(run_dir: Path, both: list[OfflineRun]) -> None:
    """Its cells with images are in the artifact that comes with a table, inside the run folder."""
    for part in both:
        (row,) = [row for row in part.history if "val/table/path" in row]
        assert row["val/table/nrows"] == 2
        (artifact,) = part.artifacts["run_table"]
        paths = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        assert all(path.is_relative_to(run_dir) for path in paths.values())
        table = json.loads(paths["val/table.table.json"].read_text())
        assert table["columns"] == ["scene", "prompt", "seed", "layout", *TITLES]
        assert [cells[:3] for cells in table["data"]] == [
            ["first", "two dogs", 0],
            ["second", "two dogs", 1],
        ]
        for cells in table["data"]:
            layout, *samples = (np.asarray(Image.open(paths[cell["path"]])) for cell in cells[3:])
            assert min(layout.shape[:2]) >= 256
            assert [image.shape for image in samples] == [(SIZE, SIZE, 3)] * 2
            for cell in cells[4:]:
                assert paths[cell["masks"]["regions"]["path"]].is_file()


@pytest.mark.slow
def test_histograms_of_norms(run_dir: Path, both: list[OfflineRun]) -> None:
    for name in ("gradient", "update"):
        rows = [r for r in both[0].history if f"norms/{name}_log10/values" in r]
        assert [row["trainer/global_step"] for row in rows] == [2, 4]
        assert all(sum(row[f"norms/{name}_log10/values"]) > 10 for row in rows)
    layers = read_rows(run_dir / "norms.csv")
    assert sorted({int(row["step"]) for row in layers}) == [2, 4, 6, 8]
    assert (run_dir / "norms.png").is_file()


@pytest.mark.slow
def test_checkpoints_are_artifacts(both: list[OfflineRun]) -> None:
    for part, step in zip(both, (NUM_STEPS, 2 * NUM_STEPS), strict=True):
        artifacts = part.artifacts["model"]
        assert {a.name for a in artifacts} == {"demo-latent"}
        assert {alias for a in artifacts for alias in a.aliases} == {"best", "latest"}
        last = artifacts[-1]  # W&B calls the last one latest
        assert "latest" in last.aliases
        assert json.loads(last.metadata)["path"].endswith(f"step-{step}.ckpt")
        names = {entry.path for entry in last.manifest.contents}
        assert {"weights.safetensors", "state.pt", "manifest.json"} <= names


# --- TensorBoard, and the disk -------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_has_the_same(run_dir: Path) -> None:
    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    expected = read_curves(run_dir / "logs")["train/loss"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert list(expected) == [*range(2 * NUM_STEPS)]
    assert [event.step for event in events.Images("val/scenes")] == [NUM_STEPS, 2 * NUM_STEPS]


@pytest.mark.slow
def test_the_disk_has_the_figures(run_dir: Path) -> None:
    names = sorted(path.name for path in (run_dir / "images").iterdir())
    kinds = (("scenes", "csv"), ("step", "png"))
    assert names == [f"{kind}-00000{n}.{end}" for kind, end in kinds for n in (4, 8)]
    rows = read_rows(run_dir / "curves.csv")
    assert [row["step"] for row in rows if row["train/loss"]] == [*map(str, range(2 * NUM_STEPS))]
    assert Image.open(run_dir / "curves.png").width > 600


# --- without the package -------------------------------------------------------------------------

HIDE = """
import sys
sys.modules["wandb"] = None  # what an import of a missing package finds, for everybody
from spatext.tools.train import main
main()
"""


@pytest.mark.slow
def test_without_the_package_a_run_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = [
        "logger=wandb",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.max_steps=3",
        "trainer.log_every_n_steps=1",
        "~module",
        "~datamodule",
        "+module._target_=tiny_runs.TinyModule",
        "+datamodule._target_=tiny_runs.TinyData",
        f"hydra.run.dir={run_dir}",
    ]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    result = subprocess.run(
        [sys.executable, "-c", HIDE, *overrides],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert list(read_metrics(run_dir)["train/grad_norm"]) == [0, 1, 2]
    told = [line for line in output.splitlines() if "W&B" in line]
    assert len(told) == 1, output
    assert "it cannot be imported; the run goes on without it" in told[0]
    assert not (run_dir / "wandb").exists()
