import pytest

from spatext.datamodules.captions import clean_text, read_caption, read_meta, read_segments_info
from spatext.datamodules.shards import BadSample


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"  a \n\t photo\r\n", "a photo"),
        (b"a\x00b\x07c", "abc"),
        (b"caf\xc3\xa9 \xff", "caf\u00e9 \ufffd"),
        ("e\u0301", "\u00e9"),
        ("\ud800x", "?x"),
        (b"x" * 9000, "x" * 8192),
    ],
)
def test_captions_are_cleaned(data: bytes | str, expected: str) -> None:
    assert clean_text(data) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"txt": b"a", "json": b'{"caption": "b"}'}, "a"),
        ({"txt": b" ", "json": b'{"caption": "b"}'}, "b"),
        ({"json": b'{"caption": 3}'}, ""),
        ({"json": b"[" * 100_000}, ""),
        ({"json": b"\xff"}, ""),
        ({}, ""),
    ],
)
def test_caption_comes_from_txt_then_json(members: dict[str, bytes], expected: str) -> None:
    assert read_caption(members, read_meta(members)) == expected


@pytest.mark.parametrize("segments", [3, [3], [{"label": "x"}], [{"id": "1"}]])
def test_malformed_segments_are_refused(segments: object) -> None:
    with pytest.raises(BadSample, match='"segments" of the json'):
        read_segments_info({"segments": segments})
