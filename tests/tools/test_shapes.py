import hashlib
import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatext.tools.shapes import main
from spatext.tools.shapes_language import COLOUR_WORDS, SHAPE_WORDS, STUFF_WORDS
from spatext.tools.shapes_texture import STUFF
from spatext.tools.shapes_world import CLASSES, PALETTE, Scene, draw_scene, heldout_layouts


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(0, "train", index) for index in range(80)]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_scene_depends_on_its_arguments_alone(scenes: list[Scene]) -> None:
    again = draw_scene(0, "train", 7)
    np.testing.assert_array_equal(again.image, scenes[7].image)
    np.testing.assert_array_equal(again.ids, scenes[7].ids)
    assert again.segments == scenes[7].segments
    assert (again.caption, again.prompt) == (scenes[7].caption, scenes[7].prompt)
    for other in (draw_scene(1, "train", 7), draw_scene(0, "test", 7), scenes[8]):
        assert (other.image != again.image).mean() > 0.5


def test_ids_give_every_pixel_to_a_segment_of_the_stated_area(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert 3 <= len(scene.segments) <= 6
        areas = np.bincount(scene.ids.ravel(), minlength=len(scene.segments) + 1)
        assert [0, *(segment.area for segment in scene.segments)] == areas.tolist()
        assert [segment.id for segment in scene.segments] == list(range(1, len(areas)))
        assert min(areas[1:]) >= 0.008 * scene.ids.size


def test_things_have_the_colour_their_attributes_say(scenes: list[Scene]) -> None:
    for scene in scenes:
        for segment in scene.segments:
            if segment.isthing and segment.attributes["texture"] == "plain":
                middle = np.median(scene.image[scene.ids == segment.id], axis=0)
                distance = np.abs(np.array(list(PALETTE.values())) - middle).sum(1)
                assert list(PALETTE)[int(distance.argmin())] == segment.attributes["colour"]


def test_texts_name_colour_and_class_or_kind(scenes: list[Scene]) -> None:
    for segment in (segment for scene in scenes for segment in scene.segments):
        if segment.isthing:
            attributes = segment.attributes
            assert segment.label == attributes["shape"]
            assert any(word in segment.text for word in COLOUR_WORDS[attributes["colour"]])
            assert any(word in segment.text for word in SHAPE_WORDS[segment.label])
        else:
            assert segment.text in STUFF_WORDS[segment.label]


def test_prompt_tells_of_the_background_alone(scenes: list[Scene]) -> None:
    for scene in scenes:
        kinds = [segment.label for segment in scene.segments if not segment.isthing]
        for kind in kinds:
            assert any(words in scene.prompt for words in STUFF_WORDS[kind])
        assert not any(noun in scene.prompt.split() for noun in CLASSES)


def test_captions_are_short_single_lines_of_many_forms(scenes: list[Scene]) -> None:
    captions = [scene.caption for scene in scenes]
    assert all(0 < len(caption.split()) < 40 for caption in captions)
    assert all(caption.isascii() and "\n" not in caption for caption in captions)
    assert len(set(captions)) == len(captions)
    for words in (" in front of ", " left of ", "shapes on ", " and other shapes"):
        assert any(words in caption for caption in captions)


def test_world_shows_all_classes_colours_kinds_and_sizes(scenes: list[Scene]) -> None:
    segments = [segment for scene in scenes for segment in scene.segments]
    assert {segment.label for segment in segments} == {*CLASSES, *STUFF}
    things = [segment for segment in segments if segment.isthing]
    assert {thing.attributes["colour"] for thing in things} == set(PALETTE)
    shares = np.array([thing.area / 64**2 for thing in things])
    assert 0.1 < (shares < 0.05).mean() < 0.5
    assert shares.max() < 0.23


def test_size_is_an_option() -> None:
    small, large = draw_scene(0, "train", 3, 32), draw_scene(0, "train", 3, 128)
    assert small.image.shape == (32, 32, 3)
    assert large.ids.shape == (128, 128)


def test_heldout_layouts_hold_two_or_three_large_things_of_different_colours() -> None:
    layouts = heldout_layouts(0, 20)
    assert {len(layout.texts) for layout in layouts} == {2, 3}
    for layout in layouts:
        k = len(layout.texts)
        areas = np.bincount(layout.ids.ravel(), minlength=k + 1)[1:]
        assert len(areas) == k
        assert min(areas) >= 0.09 * layout.ids.size
        assert len(set(layout.colours)) == k
        things = [segment for segment in layout.scene.segments if segment.isthing]
        assert areas.tolist() == [thing.area for thing in things]
        assert layout.texts == [thing.text for thing in things]
    repeated = heldout_layouts(0, 3)
    np.testing.assert_array_equal(repeated[2].ids, layouts[2].ids)


def test_shards_hold_the_scenes(tmp_path: Path) -> None:
    main([str(tmp_path), "--num", "3", "--samples-per-shard", "2", "--seed", "5", "--workers", "1"])
    with tarfile.open(tmp_path / "shapes-train-000001.tar") as tar:
        assert {member.mtime for member in tar} == {0}
        files = {member.name: tar.extractfile(member) for member in tar}
        content = {name: stream.read() for name, stream in files.items() if stream is not None}
    key = "000000002"
    endings = ("json", "panoptic.png", "png", "txt")
    assert sorted(content) == [f"{key}.{ending}" for ending in endings]
    scene = draw_scene(5, "train", 2)
    image = Image.open(io.BytesIO(content[f"{key}.png"]))
    np.testing.assert_array_equal(np.asarray(image), scene.image)
    ids = Image.open(io.BytesIO(content[f"{key}.panoptic.png"]))
    assert ids.mode == "L"
    np.testing.assert_array_equal(np.asarray(ids), scene.ids)
    assert content[f"{key}.txt"].decode() == scene.caption
    meta = json.loads(content[f"{key}.json"])
    assert meta["segments"] == [asdict(segment) for segment in scene.segments]
    assert (meta["key"], meta["width"], meta["height"]) == (key, 64, 64)
    assert (meta["caption"], meta["prompt"]) == (scene.caption, scene.prompt)


def test_same_arguments_give_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    options = ["--num", "5", "--samples-per-shard", "2", "--split", "val"]
    main([str(tmp_path / "one"), *options, "--workers", "1"])
    main([str(tmp_path / "two"), *options, "--workers", "2"])
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    names = [f"shapes-val-{n:06d}.tar" for n in range(3)]
    assert sorted(digests(tmp_path / "one")) == [*names, "shapes-val.json"]


def test_a_stopped_run_writes_only_what_is_missing(tmp_path: Path) -> None:
    options = [str(tmp_path), "--num", "4", "--samples-per-shard", "2", "--workers", "1"]
    main(options)
    before = digests(tmp_path)
    kept, lost = (tmp_path / f"shapes-train-00000{n}.tar" for n in range(2))
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    main(options)
    assert digests(tmp_path) == before
    assert kept.stat().st_mtime_ns == stamp


def test_other_arguments_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    main([str(tmp_path), "--num", "2", "--workers", "1"])
    before = digests(tmp_path)
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path), "--num", "2", "--seed", "1", "--workers", "1"])
    assert "found seed=0, expected seed=1" in str(error.value)
    assert "\n" not in str(error.value)
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "value"), [("--num", "0"), ("--size", "8"), ("--samples-per-shard", "0")]
)
def test_bad_options_are_named(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(SystemExit, match=f"{option}: found {value}, expected"):
        main([str(tmp_path / "out"), option, value])
    assert not (tmp_path / "out").exists()
