import sys
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from spatext.datamodules.captions import read_caption, read_meta
from spatext.datamodules.shards import expand_shards, index_shard, read_sample
from spatext.tools.tokenizer import main, texts_of

VOCAB_SIZE, MAX_LENGTH = 700, 20


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["spatext-tokenizer", *map(str, arguments)])
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    main()


def test_texts_are_captions_and_segment_texts(workspace: Path) -> None:
    shards = expand_shards(workspace / "train")
    expected = []
    for record in (record for shard in shards for record in index_shard(shard)):
        members = read_sample(record)
        meta = read_meta(members)
        expected += [read_caption(members, meta), *(s["text"] for s in meta["segments"])]
    assert len(expected) > 16 * 4  # a caption and three to six segments each
    assert list(texts_of(shards)) == expected


def test_the_folder_is_a_clip_tokenizer(
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "tokenizer"
    options = ("--vocab-size", str(VOCAB_SIZE), "--max-length", str(MAX_LENGTH))
    call(monkeypatch, workspace / "train", "--out", out, *options)
    assert f"{out}: {VOCAB_SIZE} tokens" in capsys.readouterr().out
    tokenizer = CLIPTokenizer.from_pretrained(out)
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.model_max_length == MAX_LENGTH
    assert tokenizer.eos_token_id == VOCAB_SIZE - 1  # the highest: CLIP pools there

    text = "a striped circle on sea water"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    # Learnt from these shards: far fewer tokens than letters, unlike a world never seen.
    assert len(ids) - 2 < 0.6 * len(text.replace(" ", ""))
    long = tokenizer(text * 9, truncation=True, padding="max_length").input_ids
    assert len(long) == MAX_LENGTH


def test_a_glob_is_taken(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, out = workspace / "train" / "shapes-train-*.tar", tmp_path / "tokenizer"
    call(monkeypatch, shards, "--out", out, "--vocab-size", "514")
    assert len(CLIPTokenizer.from_pretrained(out)) == 514
    assert CLIPTokenizer.from_pretrained(out).model_max_length == 77


@pytest.mark.parametrize(
    ("shards", "options", "message"),
    [
        ("train", ["--vocab-size", "513"], "--vocab-size: found 513, expected at least 514"),
        ("none-*.tar", [], "no .tar file matches"),
        ("none", [], "no file "),
    ],
)
def test_a_mistake_is_one_line(
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shards: str,
    options: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, workspace / shards, "--out", tmp_path / "out", *options)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()
