from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.testing import assert_close

from one_scene import paint_scene
from spatext.callbacks.ema import Ema
from spatext.callbacks.scene_grid import SceneGrid
from spatext.datamodules.drawing import enlarge, grid, overlay
from spatext.datamodules.scenes import load_scene
from spatext.modules.generate import generate, to_pixels
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from tiny import SIZE, load_spatext
from tiny_karlo import FACTOR, make_pixel_model
from tiny_runs import TinyData, make_trainer

SAMPLING = Sampling(num_steps=2, upsampler_steps=2)
SCENES = {
    "first": "{prompt: two dogs, size: 32, seed: 5, regions: "
    "[{text: a red circle, box: [0, 0, 32, 16]}, {text: a blue sea, box: [0, 16, 20, 32]}]}",
    "second": "{prompt: '', size: 16, regions: [{text: a yellow star, box: [4, 4, 12, 12]}]}",
}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name, text in SCENES.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def loud(base: Path) -> SpaText:
    """Its pictures differ after few steps."""
    model = load_spatext(base, optimizer=lambda params: torch.optim.AdamW(params, lr=0.03))
    with torch.no_grad():
        model.backbone.unet.conv_out.weight *= 4
    return model


def fit(
    model: SpaText, scenes: Path, folder: Path, max_steps: int, **options: Any
) -> dict[str, np.ndarray]:
    """The pictures of a run with a validation after the second step, by name."""
    pictures = SceneGrid(
        str(scenes), str(folder / "pictures"), size=SIZE, num_seeds=2, sampling=SAMPLING
    )
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2)
    trainer = make_trainer(
        folder,
        max_steps=max_steps,
        enable_checkpointing=True,
        callbacks=[pictures, Ema(0.5), checkpoint],
        limit_train_batches=2,
        **options,
    )
    trainer.fit(model, TinyData(num_val=4))
    paths = sorted((folder / "pictures").glob("*.png"))
    return {path.name: np.asarray(Image.open(path)) for path in paths}


def expected_picture(model: SpaText, scenes: Path) -> np.ndarray:
    rows = []
    for name in SCENES:
        scene = load_scene(scenes / f"{name}.yaml").resize((SIZE, SIZE))
        seeds = torch.tensor([scene.seed, scene.seed + 1])
        images = paint_scene(model.eval(), scene, seeds, SAMPLING)
        layout = overlay(None, scene.ids(), scene.texts, prompt=scene.prompt)
        rows.append([layout, *(enlarge(image, layout.shape[1]) for image in images)])
    return grid(rows)


def test_pictures_are_of_the_averaged_model(base: Path, scenes: Path, tmp_path: Path) -> None:
    """At the validation after two steps, and at the end after three."""
    model = loud(base)
    found = fit(model, scenes, tmp_path / "run", 3)
    assert list(found) == ["step-000002.png", "step-000003.png"]
    np.testing.assert_array_equal(found["step-000003.png"], expected_picture(model, scenes))
    state = torch.load(tmp_path / "run" / "step=2.ckpt", weights_only=True)
    model.load_state_dict(state["state_dict"])
    np.testing.assert_array_equal(found["step-000002.png"], expected_picture(model, scenes))
    model.load_state_dict(state["current_model_state"])
    assert (found["step-000002.png"] != expected_picture(model, scenes)).any()


def test_pictures_of_a_pixel_model_come_from_its_upsampler(
    karlo: Path, scenes: Path, tmp_path: Path
) -> None:
    model = make_pixel_model(karlo, upsamplers=[UpsamplerNet.from_pretrained(str(karlo), FACTOR)])
    found = fit(model, scenes, tmp_path / "run", 1)["step-000001.png"]
    np.testing.assert_array_equal(found, expected_picture(model, scenes))
    model.use_upsamplers([])
    assert (found != expected_picture(model, scenes)).any()


def test_drawing_leaves_training_alone(base: Path, scenes: Path, tmp_path: Path) -> None:
    drawn = loud(base)
    plain = loud(base)
    plain.load_state_dict(drawn.state_dict())
    fit(drawn, scenes, tmp_path / "run", 3)
    trainer = make_trainer(tmp_path, max_steps=3, callbacks=[Ema(0.5)], limit_train_batches=2)
    trainer.fit(plain, TinyData(num_val=4))
    assert_close(dict(drawn.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    assert drawn.backbone.unet.training


def test_pictures_are_painted_in_the_precision_of_the_run(
    base: Path, scenes: Path, tmp_path: Path
) -> None:
    model = loud(base)
    found = fit(model, scenes, tmp_path, 1, precision="bf16-mixed")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = expected_picture(model, scenes)
    np.testing.assert_array_equal(found["step-000001.png"], expected)
    assert (expected != expected_picture(model, scenes)).any()


def test_without_scenes_nothing_is_drawn(base: Path, tmp_path: Path) -> None:
    callback = SceneGrid([], str(tmp_path / "pictures"), size=SIZE)
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[callback])
    trainer.fit(loud(base), TinyData(num_val=4))
    assert not (tmp_path / "pictures").exists()


def test_nothing_is_drawn_before_training(base: Path, scenes: Path, tmp_path: Path) -> None:
    found = fit(loud(base), scenes, tmp_path, 1, num_sanity_val_steps=1)
    assert list(found) == ["step-000001.png"]


def test_pictures_that_the_disk_refuses_are_a_warning(
    base: Path, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures").write_text("no folder")
    fit(loud(base), scenes, tmp_path, 3)
    name = "spatext.callbacks.scene_grid"
    messages = [record.getMessage() for record in caplog.records if record.name == name]
    starts = ["no pictures of step 2: ", "no pictures of step 3: "]
    assert [message[: len(starts[0])] for message in messages] == starts


def test_a_scene_is_painted_once_for_each_seed(base: Path, scenes: Path) -> None:
    model = load_spatext(base).eval()
    scene = load_scene(scenes / "second.yaml")
    found = paint_scene(model, scene, torch.tensor([7, 2]), SAMPLING)
    assert found.shape == (2, SIZE, SIZE, 3)
    ids = torch.from_numpy(scene.ids())[None]
    for row, seed in enumerate((7, 2)):
        image = generate(model, [scene.prompt], ids, [scene.texts], torch.tensor([seed]), SAMPLING)
        difference = to_pixels(image)[0].int() - torch.from_numpy(found[row]).int()
        assert difference.abs().max() <= 1
    assert (found[0] != found[1]).mean() > 0.5


def test_scenes_are_read_before_training(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path / 'no.yaml'}: no such scene file$"):
        SceneGrid([str(tmp_path / "no.yaml")], str(tmp_path), size=SIZE)
