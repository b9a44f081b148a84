"""Which files `load_scenes` finds, and that the shipped ones are worth painting."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spatext.conf
from spatext.datamodules.drawing import overlay
from spatext.datamodules.scenes import find_scenes, load_scene, load_scenes

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenes"
SMALL = sorted((Path(spatext.conf.__file__).parent / "scenes").glob("*.yaml"))
LARGE = sorted(EXAMPLES.glob("*.yaml"))
SCENE = "{prompt: p, size: 4, regions: []}"


@pytest.fixture
def folder(tmp_path):
    for name in ("b.yaml", "a.yml", "c.json", "texts.txt", "deep/d.yaml"):
        path = tmp_path / "scenes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = '{"prompt": "p", "size": 4, "regions": []}' if name == "c.json" else SCENE
        path.write_text(text)
    return tmp_path / "scenes"


def names(paths):
    return [path.name for path in paths]


def test_a_folder_holds_its_yaml_files_sorted(folder):
    assert names(find_scenes(folder)) == ["a.yml", "b.yaml"]
    assert names(find_scenes(str(folder))) == ["a.yml", "b.yaml"]
    assert [scene.name for scene in load_scenes(str(folder))] == ["a", "b"]


def test_a_glob_holds_scene_files_sorted(folder, monkeypatch):
    assert names(find_scenes(f"{folder}/*")) == ["a.yml", "b.yaml", "c.json"]
    assert names(find_scenes(f"{folder}/**/*.yaml")) == ["b.yaml", "d.yaml"]
    monkeypatch.chdir(folder.parent)
    assert find_scenes("scenes/*.yaml") == [Path("scenes/b.yaml")]
    assert [scene.name for scene in load_scenes("scenes/[ac].*")] == ["a", "c"]


def test_a_list_keeps_its_order_and_each_file_once(folder):
    sources = [folder / "c.json", str(folder / "b.yaml"), str(folder), f"{folder}/deep/../b*"]
    assert names(find_scenes(sources)) == ["c.json", "b.yaml", "a.yml"]


def test_a_file_with_a_bracket_in_its_name_is_a_file(folder):
    (folder / "b[1].yaml").write_text(SCENE)
    assert names(find_scenes(str(folder / "b[1].yaml"))) == ["b[1].yaml"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"scene=\S+: found no \*\.yaml in this folder, expected scenes"),
        ("*.yaml", r"scene=\S+\*\.yaml: found no file that this matches, expected scenes"),
    ],
)
def test_a_source_without_scenes_is_named(tmp_path, source, message):
    with pytest.raises(FileNotFoundError, match=f"^{message}$"):
        find_scenes(f"{tmp_path}/{source}")


def test_an_absent_file_and_an_empty_list_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml: no such scene file$"):
        load_scenes(str(tmp_path / "absent.yaml"))
    with pytest.raises(FileNotFoundError, match=r"^scene: found an empty list, expected .*$"):
        load_scenes([])


def test_two_files_of_one_stem_are_refused(folder):
    (folder / "deep" / "b.yaml").write_text(SCENE)
    message = (
        r"^scene=\S+/deep/b\.yaml: has the name of \S+/scenes/b\.yaml, expected different ones$"
    )
    with pytest.raises(ValueError, match=message):
        find_scenes([folder, folder / "deep"])


@pytest.mark.parametrize("path", SMALL + LARGE, ids=lambda path: path.stem)
def test_every_shipped_scene_loads_and_draws(path):
    scene = load_scene(path)
    assert scene.prompt
    assert scene.regions
    ids = scene.ids()
    plain = overlay(None, np.zeros_like(ids), [], legend=False)
    drawn = overlay(scene.background, ids, scene.texts, prompt=scene.prompt)
    height, width = plain.shape[:2]
    assert drawn.shape[0] > height  # the legend
    large = ids.repeat(height // len(ids), axis=0).repeat(width // ids.shape[1], axis=1)
    assert (drawn[:height] != plain).any(axis=-1)[large > 0].mean() > 0.9  # all but some paper
    assert (np.bincount(ids.ravel())[1:] > 0.01 * ids.size).all()


def test_the_gallery_is_large_and_reduces_to_the_latents():
    scenes = load_scenes(EXAMPLES)
    assert len(scenes) >= 10
    assert len({scene.prompt for scene in scenes}) >= 10
    for scene in scenes:
        assert scene.size == (512, 512)
        assert scene.resize((64, 64)).texts == scene.texts
    layouts = {scene.name: scene.ids() for scene in scenes}
    for pair in (("tortoise_desert", "tortoise_library"), ("lighthouse_oil", "lighthouse_paper")):
        np.testing.assert_array_equal(layouts[pair[0]], layouts[pair[1]])
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"`{scene.name}`" in listed for scene in scenes)


def test_the_painted_layouts_are_what_their_program_draws():
    program = runpy.run_path(str(EXAMPLES / "paint.py"))
    assert set(program["PAINTINGS"]) == {path.name for path in EXAMPLES.glob("*.png")}
    for name, shapes in program["PAINTINGS"].items():
        with Image.open(EXAMPLES / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), program["paint"](shapes))
        assert (EXAMPLES / name).stat().st_size < 10_000
