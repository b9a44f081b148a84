"""Texts over a text encoder's limit are told, with the part that it does not read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from open_clip.tokenizer import HFTokenizer
from transformers import CLIPTokenizer

from samples import sample, write_scenes
from spatext.callbacks.remarks import cut_off
from tiny import MAX_LENGTH

TEXT = "A Red circle, a yellow star\nabove a green SQUARE and two dogs"  # a word is a token


def of_transformers(base: Path) -> tuple[Any, Callable[[str], list[int]]]:
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    return tokenizer, lambda text: tokenizer(text, truncation=True).input_ids


def wrapped(base: Path) -> tuple[Any, Callable[[str], list[int]]]:
    tokenizer = HFTokenizer(str(base / "tokenizer"), context_length=9)
    return tokenizer, lambda text: tokenizer(text)[0].tolist()


@pytest.mark.parametrize(("load", "limit"), [(of_transformers, MAX_LENGTH), (wrapped, 9)])
def test_the_part_that_is_cut_off(workspace: Path, load: Callable[[Path], Any], limit: int) -> None:
    """Without it the tokens are the same; with a letter less they are others."""
    tokenizer, encode = load(workspace / "base")
    num_tokens, found, cut = cut_off(tokenizer, TEXT)
    clean = TEXT if load is of_transformers else " ".join(TEXT.split())
    assert found == limit < num_tokens
    assert clean.endswith(cut)
    kept = clean.removesuffix(cut)
    assert encode(kept) == encode(TEXT)
    assert encode(kept[:-2]) != encode(TEXT)
    assert cut_off(tokenizer, kept) == (limit, limit, "")
    assert cut_off(tokenizer, "")[::2] == (2, "")
    letters = "\N{LATIN SMALL LETTER O WITH DIAERESIS}" * 20  # two tokens each
    assert len(cut_off(tokenizer, letters)[2]) == 20 - (limit - 2) // 2


def test_the_tokenizer_of_openai() -> None:
    """77 tokens: both ends and 75 words of one token each."""
    tokenizer = open_clip.get_tokenizer("ViT-L-14")
    fits = " ".join(["Dog"] * 75)
    assert cut_off(tokenizer, fits) == (77, 77, "")
    assert cut_off(tokenizer, f"{fits} Red  circle") == (79, 77, "red circle")


def warnings(
    checkpoint: Path, scene: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> list[str]:
    scenes = write_scenes(tmp_path / "scenes", long=scene)
    capsys.readouterr()
    sample(checkpoint, scenes, tmp_path / "out", *options)
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning: ")]


REGIONS = "regions: [{text: two dogs, box: [1, 1, 8, 8]}, {text: a blue sea, box: [8, 8, 14, 14]}]"


def test_prompts_are_measured_with_the_texts_that_are_appended(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit of the tiny encoders is 12; the words here are tokens."""
    scene = "{{prompt: {}, size: 16, {}}}"
    short = scene.format("a yellow red circle", REGIONS)
    expected = (
        "warning: scene long: prompt with the local texts: 13 tokens, the text encoder reads 12; "
        'cut off: "sea"'
    )
    assert warnings(checkpoint, short, tmp_path, capsys) == [expected]
    apart = ("sampling.append_texts=false", "sampling.scale=2.0")
    assert warnings(checkpoint, short, tmp_path, capsys, *apart) == []
    alone = scene.format("a red circle a red circle a red circle a red circle", REGIONS)
    expected = (
        'warning: scene long: prompt: 14 tokens, the text encoder reads 12; cut off: "red circle"'
    )
    assert warnings(checkpoint, alone, tmp_path, capsys, *apart) == [expected]


def test_local_and_negative_texts_are_measured_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a blue sea a blue sea a blue sea two dogs"
    scene = (
        f"{{prompt: '', negative_prompt: {text}, size: 16, "
        f"regions: [{{text: {text}, box: [1, 1, 8, 8]}}]}}"
    )
    lines = warnings(checkpoint, scene, tmp_path, capsys, "sampling.append_texts=false")
    end = '13 tokens, {} reads 12; cut off: "dogs"'
    assert lines == [
        f"warning: scene long: negative_prompt: {end.format('the text encoder')}",
        f"warning: scene long: regions[0].text: {end.format('CLIP')}",
    ]


def test_scales_without_effect_are_told(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = "{prompt: two dogs, size: 16, scales: {text: 1, segments: 2}, regions: []}"
    told = warnings(checkpoint, scene, tmp_path, capsys)
    assert told == ["warning: scene long: scales have no effect without sampling.form=full"]
    assert warnings(checkpoint, scene, tmp_path, capsys, "sampling.form=full") == []
