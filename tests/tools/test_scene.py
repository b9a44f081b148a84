import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatext.datamodules.drawing import overlay
from spatext.datamodules.scenes import load_scene
from spatext.tools.scene import main

GOOD = "{prompt: a park, size: 8, seed: 3, regions: [{text: a dog, box: [0, 0, 4, 4]}]}"
DOG = np.zeros((6, 8), dtype=np.uint8)
DOG[1:5, 1:5] = 255
SKY = np.zeros((6, 8), dtype=np.uint8)
SKY[:3] = 255
PANOPTIC = {
    "images": [{"id": 42, "height": 6, "width": 8}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 187, "name": "sky-other-merged"}],
    "annotations": [
        {
            "image_id": 42,
            "file_name": "42.png",
            "segments_info": [{"id": 1, "category_id": 1}, {"id": 256, "category_id": 187}],
        }
    ],
}
INSTANCES = PANOPTIC | {
    "annotations": [
        {"image_id": 42, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
        {"image_id": 42, "category_id": 187, "segmentation": [[0, 0, 8, 0, 8, 3, 0, 3]]},
    ]
}


class Command:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> str:
        self.monkeypatch.setattr(sys, "argv", ["spatext-scene", *map(str, arguments)])
        self.monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        main()
        return self.capsys.readouterr().out

    def fails(self, *arguments: object) -> str:
        with pytest.raises(SystemExit) as info:
            self(*arguments)
        assert info.value.code == 1
        return self.capsys.readouterr().err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    pixels = np.zeros((6, 8, 3), dtype=np.uint8)
    pixels[SKY > 0, 1] = 1  # 256
    pixels[DOG > 0] = (1, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "42.png")
    captions = {"annotations": [{"image_id": 42, "id": 1, "caption": "A dog outside."}]}
    for name, document in (
        ("panoptic", PANOPTIC),
        ("instances", INSTANCES),
        ("captions", captions),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def test_check_tells_each_scene_and_each_mistake(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    assert command("check", tmp_path) == f"{tmp_path}/a.yaml: 8x8, 1 region, seed 3\n"
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    settings = "variation_seed: 5, negative_prompt: fog, scales: {text: 1, segments: 2.5}, "
    (tmp_path / "d.yaml").write_text(
        GOOD.replace("regions", f"{settings}background: photo.png, regions")
    )
    line = "8x8, 1 region, seed 3, variation_seed 5, negative prompt, text scale 1, "
    line += "segments scale 2.5, 25% of the background repainted"
    assert f"{tmp_path}/d.yaml: {line}\n" in command("check", tmp_path)

    for name in ("b", "c"):
        (tmp_path / f"{name}.yaml").write_text(GOOD.replace("a dog", "' '"))
    with pytest.raises(SystemExit) as info:
        command("check", tmp_path)
    assert info.value.code == 1
    out, err = command.capsys.readouterr()
    assert out.count("\n") == 2
    wanted = "regions[0].text: empty, expected words for what belongs here"
    assert err == "".join(f"error: {tmp_path}/{name}.yaml: {wanted}\n" for name in "bc")


def test_draw_writes_an_overlay_of_each_scene(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    photo = np.full((8, 8, 3), 90, dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (tmp_path / "b.yaml").write_text(GOOD.replace("seed: 3", "background: photo.png"))
    out = tmp_path / "new" / "layouts"
    assert command("draw", f"{tmp_path}/*.yaml", "--out", out) == f"{out}/a.png\n{out}/b.png\n"
    for name, background in (("a", None), ("b", photo)):
        ids = load_scene(tmp_path / f"{name}.yaml").ids()
        expected = overlay(background, ids, ["a dog"], prompt="a park")
        with Image.open(out / f"{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize("texts", ["texts.yaml", "texts.json"])
def test_masks_of_a_folder_become_a_scene(command: Command, tmp_path: Path, texts: str) -> None:
    folder, out = tmp_path / "masks", tmp_path / "out" / "park.yaml"
    folder.mkdir()
    Image.fromarray(DOG).save(folder / "1.png")
    Image.fromarray(SKY).save(folder / "sky.webp", lossless=True)
    (folder / texts).write_text('{"sky": "a grey sky", "1": "a dog"}')
    options = ("--texts", folder / texts, "--prompt", "a park", "--seed", 9, "--out", out)
    printed = command("from-masks", folder, *options)
    assert printed == f"{out}: 6x8, 2 regions, seed 9\n"
    scene = load_scene(out)
    assert (scene.prompt, scene.seed, scene.texts) == ("a park", 9, ("a grey sky", "a dog"))
    np.testing.assert_array_equal(scene.regions[0].mask, SKY > 0)
    np.testing.assert_array_equal(scene.regions[1].mask, DOG > 0)


def test_coco_maps_and_instances_become_the_same_scene(command: Command, coco: Path) -> None:
    options = ("--image-id", 42, "--size", 12, "--captions", coco / "captions.json")
    panoptic = ("--annotations", coco / "panoptic.json", "--panoptic-root", coco)
    printed = command("from-coco", *panoptic, *options, "--out", coco / "a.yaml")
    assert printed == f"{coco}/a.yaml: 12x12, 2 regions, seed 0\n"
    scene = load_scene(coco / "a.yaml")
    assert (scene.prompt, scene.texts) == ("A dog outside.", ("dog", "sky"))
    square = np.where(DOG > 0, 1, np.where(SKY > 0, 2, 0))[:, 1:7]
    np.testing.assert_array_equal(scene.ids(), square.repeat(2, 0).repeat(2, 1))
    instances = ("--annotations", coco / "instances.json")
    command("from-coco", *instances, *options, "--out", coco / "b.yaml")
    np.testing.assert_array_equal(load_scene(coco / "b.yaml").ids(), scene.ids())

    less = (*panoptic, "--image-id", 42, "--size", 12, "--regions", 1, "--seed", 2)
    command("from-coco", *less, "--out", coco / "c.yaml")
    scene = load_scene(coco / "c.yaml")
    assert (scene.prompt, scene.texts, scene.seed) == ("", ("dog",), 2)
    message = command.fails("from-coco", *less, "--min-area", 0.9, "--out", coco / "d.yaml")
    assert message.startswith("error: d: the largest segment covers 0.444 of the central square")


def test_mistakes_are_one_line(command: Command, coco: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (tmp_path / "texts.yaml").write_text("{dog: a dog}")
    (tmp_path / "empty.yaml").write_text("{dog: ' '}")
    texts, out = ("--texts", tmp_path / "texts.yaml"), ("--out", tmp_path / "s.yaml")
    assert "masks: found no masks, expected .png, .jpg" in command.fails(
        "from-masks", masks, *texts, *out
    )
    (masks / "dog.png").write_text("no picture")
    error = command.fails("from-masks", masks, *texts, *out)
    assert error == f"error: {masks}/dog.png: not a readable picture\n"
    Image.fromarray(DOG).save(masks / "dog.png")
    Image.fromarray(SKY).save(masks / "sky.png")
    for arguments, message in (
        ((tmp_path / "no", *texts, *out), f"{tmp_path}/no: no such folder of masks"),
        ((masks, "--texts", tmp_path / "no.yaml", *out), "no.yaml: no such file of texts"),
        (
            (masks, "--texts", tmp_path / "empty.yaml", *out),
            f"{tmp_path}/empty.yaml: dog: empty, expected words for what belongs here",
        ),
        ((masks, *texts, *out), "sky: has no text (1 of these in all)"),
        ((masks, *texts, "--out", "s.png"), "expected one of .yaml, .yml, .json, found suffix"),
    ):
        assert message in command.fails("from-masks", *arguments)
    Image.fromarray(SKY[:, 1:]).save(masks / "sky.png")
    message = "sky: 'sky.png' is 6x7 (height x width), expected 6x8 (height x width)"
    assert message in command.fails("from-masks", masks, *texts, *out)
    Image.fromarray(SKY).save(masks / "dog.jpg")
    assert "dog.png: has the stem of dog.jpg" in command.fails("from-masks", masks, *texts, *out)

    panoptic = ("--annotations", coco / "panoptic.json", "--image-id", 42)
    root = ("--panoptic-root", coco)
    captions = ("--captions", coco / "captions.json")
    for arguments, message in (
        (panoptic, "--panoptic-root: missing"),
        ((*panoptic, "--panoptic-root", coco / "no"), "no/42.png: no such panoptic map"),
        ((*panoptic, *root, "--captions", coco / "no.json"), "no.json: no such file"),
        ((*panoptic[:3], 7, *root), "annotations: found no"),
        ((*panoptic[:3], 7, *root, *captions), "captions.json: captions: found none of image 7"),
        (("--annotations", coco / "texts.yaml", "--image-id", 42), "annotations: found None"),
    ):
        error = command.fails("from-coco", *arguments, *out)
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "s.yaml").exists()
