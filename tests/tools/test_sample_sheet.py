"""The contact sheet and the grid of scales."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from samples import SQUARE, WIDE, pixels, sample, write_scenes
from spatext.datamodules.drawing import colour
from spatext.tools import contact_sheet

EVIL = "<script>alert('1')</script> & \"quotes\" </section>"
LOCAL = "<b>zw\N{LATIN SMALL LETTER O WITH DIAERESIS}lf</b> boats"
NASTY = f"""
prompt: '{EVIL.replace("'", "''")}'
negative_prompt: <i>dogs</i>
size: 16
regions: [{{text: "{LOCAL}", box: [1, 2, 8, 12]}}]
"""


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, tag: str, key: str) -> list[str]:
        return [attrs[key] or "" for name, attrs in self.tags if name == tag and key in attrs]


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    scenes = write_scenes(tmp_path / "scenes", **{"a b & #1%": NASTY, "x:wide": WIDE})
    sample(checkpoint, scenes, tmp_path / "out", "num_images=2")
    return tmp_path / "out"


def test_the_page_is_whole_and_needs_nothing_else(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert text.startswith("<!doctype html>")
    links = page.values("a", "href") + page.values("img", "src")
    for link in links:
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", ""), link
        assert (folder / unquote(parts.path)).is_file(), link
    assert {unquote(urlsplit(link).path) for link in links} == {
        f"./{path.name}" for path in folder.iterdir() if path.name not in ("index.html", "grid.png")
    } | {"grid.png"}
    loaded = {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert loaded.isdisjoint(tag for tag, _ in page.tags)
    assert "url(" not in text
    assert "@import" not in text


def test_the_layout_is_beside_the_pictures(folder: Path) -> None:
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    names = [unquote(link).removeprefix("./") for link in page.values("img", "src")]
    stem = "a b & #1%"
    assert names[:3] == [f"{stem}-layout.png", f"{stem}-0.png", f"{stem}-1.png"]
    sizes = [*zip(page.values("img", "height"), page.values("img", "width"), strict=True)]
    assert sizes[1] == ("256", "256")  # 16 times larger, to be seen
    layout = pixels(folder / f"{stem}-layout.png").shape
    assert sizes[0] == (str(layout[0]), str(layout[1]))
    assert sizes[4] == ("256", "768")  # 8 x 24


def test_texts_are_shown_as_they_are(folder: Path) -> None:
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert {EVIL, LOCAL, "a b & #1%", "not: <i>dogs</i>", "seed 1"} <= set(page.texts)
    assert "b" not in {tag for tag, _ in page.tags}
    (swatch,) = page.values("span", "style")
    red, green, blue = colour(1)
    assert swatch == f"background:#{red:02x}{green:02x}{blue:02x}"
    recipe = page.texts[page.texts.index("recipe of a b & #1%-0.png") + 1]
    assert '"num_steps": 2' in recipe
    assert '"mask": "(in the file)"' in recipe


def test_a_grid_that_would_be_huge_shows_the_first_scenes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(contact_sheet, "MAX_GRID_PIXELS", 1)
    scenes = write_scenes(tmp_path / "scenes", square=SQUARE, wide=WIDE)
    sample(checkpoint, scenes, tmp_path / "out")
    assert "grid.png shows 1 of 2 scenes, index.html all\n" in capsys.readouterr().out
    layout = pixels(tmp_path / "out" / "square-layout.png")
    assert pixels(tmp_path / "out" / "grid.png").shape[0] == layout.shape[0] + 16
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "./wide-0.png" in page.values("img", "src")


# --- scales --------------------------------------------------------------------------------------


def place(whole: np.ndarray, part: np.ndarray) -> tuple[int, int]:
    """(row, column) of the one place where `part` lies in `whole`."""
    height, width = part.shape[:2]
    corners = (whole[: 1 - height or None, : 1 - width or None] == part[0, 0]).all(-1)
    found = [
        (int(y), int(x))
        for y, x in np.argwhere(corners)
        if np.array_equal(whole[y : y + height, x : x + width], part)
    ]
    assert len(found) == 1, found
    return found[0]


def test_a_grid_of_scales(checkpoint: Path, tmp_path: Path) -> None:
    """Text to the right, segments downwards, for each scene and seed; the rest as ever."""
    scenes = write_scenes(tmp_path / "scenes", square=SQUARE)
    out = tmp_path / "out"
    options = ("scale_grid.text=[0,4]", "scale_grid.segments=[1,0.5,8]", "num_images=2")
    written = sample(checkpoint, scenes, out, *options)
    pairs = [(t, s) for s in ("1", "0.5", "8") for t in ("0", "4")]
    names = [f"square-{seed}-text{t}-segments{s}.png" for seed in (5, 6) for t, s in pairs]
    assert [path.name for path in written] == names
    grids = {f"square-{seed}-scales.png" for seed in (5, 6)}
    others = {"grid.png", "index.html", "square-layout.png"}
    assert {path.name for path in out.iterdir()} == {*names, *grids, *others}

    whole = pixels(out / "square-5-scales.png")
    places = [place(whole, pixels(path).repeat(8, 0).repeat(8, 1)) for path in written[:6]]
    rows, columns = sorted({y for y, _ in places}), sorted({x for _, x in places})
    assert places == [(y, x) for y in rows for x in columns]
    assert columns[1] - columns[0] == rows[1] - rows[0] == 128 + 8
    # Titles: ink above the columns and before the rows.
    for x in columns:
        assert whole[: rows[0], x : x + 128].min() < 64
    for y in rows:
        assert whole[y : y + 128, : columns[0]].min() < 64
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert "./square-6-scales.png" in page.values("a", "href")
    assert {"seed 5, text 4, segments 0.5", "12 images of 1 scene"} <= set(page.texts)
    place(pixels(out / "grid.png"), whole)


def test_a_pair_of_the_grid_is_full_guidance_with_these_scales(
    checkpoint: Path, tmp_path: Path
) -> None:
    scene = "{prompt: a beach, size: 16, scales: {text: 9, segments: 9}, regions: [{text: two dogs, box: [1, 2, 9, 9]}]}"  # noqa: E501
    scenes = write_scenes(tmp_path / "scenes", dogs=scene)
    grid = ("scale_grid={text:[2],segments:[0,5]}", "batch_size=1")
    written = sample(checkpoint, scenes, tmp_path / "grid", *grid)
    scales = ("sampling.form=full", "sampling.scales.text=2.0", "sampling.scales.segments=5.0")
    plain = scene.replace("scales: {text: 9, segments: 9}, ", "")
    write_scenes(tmp_path / "plain", dogs=plain)
    (alone,) = sample(checkpoint, tmp_path / "plain", tmp_path / "alone", *scales)
    assert np.abs(pixels(written[1]) - pixels(alone)).max() <= 1
    assert np.abs(pixels(written[0]) - pixels(alone)).max() > 2
