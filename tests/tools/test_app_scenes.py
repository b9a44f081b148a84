"""Scene files that the page gives and takes, and those that it refuses."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from datamodules.tars import png
from pages import SIZE, encode, painted, pixels, two_halves, watch
from spatext.callbacks.images import paint_scenes
from spatext.datamodules.scenes import Region, Scene, load_scene
from spatext.modules.sampling_options import Sampling
from spatext.tools.loading import load_model
from spatext.tools.recipes import read_recipe
from spatext.tools.web.archive import pack_scene, unpack_scene
from spatext.tools.web.limits import Limits, Refusal
from spatext.tools.web.orders import read_order

LIMITS = Limits(multiple=4)
DEFAULTS = Sampling(num_steps=4)
UNICODE = "ein sch\u00f6ner \U0001f98a, \u6d77, \u0628\u062d\u0631"


def unpacked(archive: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        file.extractall(folder)
    return folder / "scene.yaml"


def test_the_scene_of_a_picture_is_a_scene_file(client: httpx.Client, tmp_path: Path) -> None:
    photo = np.full((SIZE, SIZE, 3), 90, dtype=np.uint8)
    order = two_halves(
        prompt=UNICODE,
        regions=[{"text": "a red circle", "strength": 1.5}, {"text": UNICODE, "variation": 0.25}],
        variation_seed=11,
        negative_prompt="rain",
        background=encode(png(photo)),
        repaint=[1],
        form="full",
        scales={"text": 2.0, "segments": 4.0},
    )
    job = client.post("/api/jobs", json=order).json()
    assert list(watch(client, job["id"]))[-1]["state"] == "done"
    archive = client.get(f"/api/jobs/{job['id']}/scene.zip").content
    scene = load_scene(unpacked(archive, tmp_path))
    assert scene == read_order(json.dumps(order).encode(), DEFAULTS, LIMITS).scene
    assert (scene.prompt, scene.negative_prompt, scene.seed) == (UNICODE, "rain", 3)
    assert scene.regions[0] == Region("a red circle", scene.ids() == 1, strength=1.5)
    assert scene.scales == {"text": 2.0, "segments": 4.0}
    assert scene.background is not None
    np.testing.assert_array_equal(scene.background, photo)
    # Without asking for a picture the archive is the same, and it comes back as it was sent.
    assert client.post("/api/scene.zip", json=order).content == archive
    form = client.get(f"/api/jobs/{job['id']}/scene").json()
    headers = {"content-type": "application/octet-stream"}
    assert client.post("/api/scene", content=archive, headers=headers).json() == form
    back = client.post("/api/scene.zip", json={**form, "form": "full"})
    assert load_scene(unpacked(back.content, tmp_path / "back")) == scene


def test_the_picture_holds_its_recipe(
    client: httpx.Client, checkpoint: Path, tmp_path: Path
) -> None:
    job = painted(client, form="full", scales={"text": 2.0, "segments": 4.0})
    file = tmp_path / "picture.png"
    file.write_bytes(client.get(f"/api/jobs/{job['id']}/picture.png").content)
    recipe = read_recipe(str(file))
    assert recipe["made"]["checkpoint"] == str(checkpoint)
    (again,) = paint_scenes(
        load_model(recipe["made"]["checkpoint"]),
        [recipe["scene"]],
        torch.tensor([recipe["seed"]]),
        recipe["sampling"],
    )
    np.testing.assert_array_equal(pixels(file.read_bytes()), again)


def test_scenes_without_pictures_are_read_as_text(client: httpx.Client) -> None:
    text = """
prompt: a sandy beach
size: [10, 21]
regions: [{text: a red circle, box: [0, 0, 10, 10]}]
"""
    headers = {"content-type": "application/octet-stream"}
    form = client.post("/api/scene", content=text.encode(), headers=headers).json()
    assert form["size"] == [8, 20]  # the nearest that the model can halve
    assert [region["text"] for region in form["regions"]] == ["a red circle"]
    assert client.post("/api/jobs", json=strip(form)).is_success


def strip(form: dict[str, Any]) -> dict[str, Any]:
    """A scene as an order: without what it leaves to the sampling."""
    return {key: value for key, value in form.items() if value is not None}


def test_examples_have_the_size_of_training(client: httpx.Client) -> None:
    names = client.get("/api/model").json()["examples"]
    assert len(names) >= 5
    for number in range(len(names)):
        form = client.get(f"/api/examples/{number}").json()
        assert form["size"] == [SIZE, SIZE], names[number]
        assert form["regions"]
    assert client.get(f"/api/examples/{len(names)}").status_code == 404


def archive(**files: bytes | str) -> bytes:
    """A zip; in the names, __ stands for a dot."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def scene_text(mask: str = "m.png", size: int = 16, count: int = 1, more: str = "") -> str:
    regions = ", ".join([f"{{text: a star, mask: {mask}}}"] * count)
    return f"{{prompt: p, size: {size}, regions: [{regions}]{more}}}"


MASK = png(np.full((16, 16), 255, dtype=np.uint8))
LARGE = png(np.zeros((2736, 3648), dtype=np.uint8))  # ten megapixels
BAD_SCENES = {
    "no zip, no text": (b"\xff\xfe\x00\x01", "found no text"),
    "half a zip": (archive(scene__yaml=scene_text())[:60], "damaged or locked"),
    "text that is no scene": (b"hello", "expected a scene.zip"),
    "a list": (b"[1, 2]", "expected a scene.zip"),
    "wrong YAML": (b"prompt: [", "line 1"),
    "deep YAML": (b"[" * 20000, "nested more than 32 deep"),
    "deep YAML of lines": (b"- " * 20000, "nested too deeply"),
    "no scene in it": (archive(m__png=MASK), "found 0 scene files"),
    "two scenes in it": (archive(a__yaml=scene_text(), b__json="{}"), "found 2 scene files"),
    "a folder in a name": (archive(**{"a/../../x__yaml": ""}), "expected plain names"),
    "a root in a name": (archive(**{"/etc/x__yaml": ""}), "expected plain names"),
    "a missing file": (archive(scene__yaml=scene_text()), "'m.png' is not in the zip"),
    "a file of the server": (
        archive(scene__yaml=scene_text("/etc/hostname")), "'/etc/hostname' is not in the zip",
    ),
    "a file above": (archive(scene__yaml=scene_text("../m.png")), "'../m.png' is not in the zip"),
    "a file beside": (scene_text("scene.yaml").encode(), "found no image"),
    "a background of the server": (
        b"{prompt: p, size: 16, background: /etc/hostname, regions: []}", "not in the zip",
    ),
    "a painting of the server": (
        b"{prompt: p, size: 16, painting: /etc/hostname, colours: {}}", "not in the zip",
    ),
    "no picture": (archive(scene__yaml=scene_text(), m__png=b"PNG"), "found no image"),
    "ten megapixels": (archive(scene__yaml=scene_text(), m__png=LARGE), "is 3648 x 2736"),
    "a wrong size": (archive(scene__yaml=scene_text(size=32), m__png=MASK), "'m.png' is 16x16"),
    "a huge canvas": (archive(scene__yaml=scene_text(size=8192), m__png=MASK), "size 8192"),
    "100 regions": (archive(scene__yaml=scene_text(count=100), m__png=MASK), "100 regions"),
    "many points": (
        f"{{prompt: p, size: 16, regions: [{{text: a, polygon: {[[0, 0]] * 3000}}}]}}".encode(),
        "3000 points",
    ),
    "a bomb": (archive(scene__yaml=scene_text(), m__png=bytes(30 * 2**20)), "12 MiB unpacked"),
    "long text": (archive(scene__yaml=scene_text() + " " * 2**20), "over 128 KiB of text"),
    "an unknown key": (archive(scene__yaml=scene_text(more=", sede: 1"), m__png=MASK), "'seed'"),
    "a large seed": (
        archive(scene__yaml=scene_text(more=f", seed: {2**60}"), m__png=MASK), "seed 11529",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SCENES)
def test_unusable_scenes_are_refused_in_one_line(case: str) -> None:
    data, message = BAD_SCENES[case]
    with pytest.raises(Refusal, match=re.escape(message)) as caught:
        unpack_scene(data, LIMITS)
    assert str(caught.value).startswith("scene: ")
    assert "\n" not in str(caught.value)


def test_a_packed_scene_is_unpacked_as_it_was() -> None:
    mask = np.zeros((8, 16), dtype=bool)
    mask[2:5, 3:9] = True
    scene = Scene("scene", UNICODE, (8, 16), 5, (Region("a red circle", mask),))
    assert unpack_scene(pack_scene(scene), LIMITS) == scene
