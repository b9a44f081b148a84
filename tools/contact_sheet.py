"""Pictures side by side: layouts, grids, and a page of HTML that needs nothing but the PNGs."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from spatext.callbacks.jobs import Job
from spatext.datamodules.documents import write_text
from spatext.datamodules.drawing import (
    MIN_SIDE,
    PAPER,
    colour,
    enlarge,
    grid,
    overlay,
    save_png,
)
from spatext.datamodules.lettering import INK
from spatext.datamodules.scenes import Scene
from spatext.tools.recipes import brief_recipe, dump_recipe
from spatext.tools.sample_jobs import AXES, grouped

Pixels = UInt8[np.ndarray, "_ _ 3"]

MAX_GRID_PIXELS = 2**26  # our choice: about 200 MB while it is drawn
MIN_CELL = 128  # of a grid of scales, so that the scale can be read over it
STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 1.5rem; }
section { margin-top: 2.5rem; }
.row { display: flex; flex-wrap: wrap; gap: 0.75rem; align-items: flex-start; }
figure { margin: 0; }
figcaption { font-size: 0.85rem; }
img { max-width: 100%; height: auto; display: block; }
img.enlarged { image-rendering: pixelated; }
ul { list-style: none; padding: 0; }
.swatch { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.5em; }
pre { overflow-x: auto; font-size: 0.8rem; }
"""


def write_sheets(folder: Path, jobs: Sequence[Job], origin: Mapping[str, Any]) -> None:
    """<scene>-layout.png, <scene>-<seed>-scales.png, grid.png and index.html of finished jobs."""
    rows: list[list[Pixels]] = []
    sections, spent = [], 0
    for scene, seeds in grouped(jobs):
        layout = overlay(scene.background, scene.ids(), scene.texts, prompt=scene.prompt)
        pictures = {layout_file(scene): layout}
        row = [layout]
        for group in seeds:
            if group[0].scales is None:
                row.append(enlarge(read(folder / group[0].file), layout.shape[1]))
            else:
                row.append(scale_grid(folder, group))
                pictures[grid_file(group[0])] = row[-1]
        for name, picture in pictures.items():
            save_png(folder / name, picture)
        spent += max(cell.shape[0] for cell in row) * sum(cell.shape[1] for cell in row)
        if not rows or spent <= MAX_GRID_PIXELS:
            rows.append(row)
        sections.append(section(scene, [job for group in seeds for job in group], pictures, origin))
    save_png(folder / "grid.png", grid(rows))
    if len(rows) < len(sections):
        print(f"grid.png shows {len(rows)} of {len(sections)} scenes, index.html all")
    write_text(folder / "index.html", page(sections, len(jobs)))


def layout_file(scene: Scene) -> str:
    return f"{scene.name}-layout.png"


def grid_file(job: Job) -> str:
    return f"{job.scene.name}-{job.seed}-scales.png"


def read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).copy()


def axes(jobs: Iterable[Job]) -> dict[str, list[float]]:
    """The scales of each axis, in the order asked for."""
    scales = [job.scales or {} for job in jobs]
    return {name: list(dict.fromkeys(pair[name] for pair in scales)) for name in AXES}


def scale_grid(folder: Path, jobs: Sequence[Job]) -> Pixels:
    """SpaText, figure 4: one scene and seed, text (global) against segments (local) scale."""
    found = axes(jobs)
    images = iter([read(folder / job.file) for job in jobs])
    rows = []
    for down in found["segments"]:
        cells = [next(images) for _ in found["text"]]
        cells = [cell.repeat(_times(cell, MIN_CELL), 0).repeat(_times(cell, MIN_CELL), 1)
                 for cell in cells]  # fmt: skip
        rows.append([_title(f"segments {down:g}", cells[0].shape[0]), *cells])
    return grid(rows, labels=["", *(f"text {across:g}" for across in found["text"])])


def section(
    scene: Scene, jobs: Sequence[Job], drawn: Mapping[str, Pixels], origin: Mapping[str, Any]
) -> str:
    """Of one scene: what was asked for, what was drawn of it (by file), its pictures, a recipe."""
    figures = []
    for name, picture in drawn.items():
        caption = "layout" if name == layout_file(scene) else name
        figures.append(_figure(name, caption, (picture.shape[0], picture.shape[1])))
    times = max(1, math.ceil(MIN_SIDE / min(scene.size)))
    for job in jobs:
        scales = "".join(f", {name} {value:g}" for name, value in (job.scales or {}).items())
        size = (scene.size[0] * times, scene.size[1] * times)
        figures.append(_figure(job.file, f"seed {job.seed}{scales}", size, enlarged=times > 1))
    legend = "".join(
        f'<li><span class="swatch" style="background:#{bytes(colour(k)).hex()}"></span>'
        f"{escape(text)}</li>"
        for k, text in enumerate(scene.texts, start=1)
    )
    avoided = f"<p>not: {escape(scene.negative_prompt)}</p>" if scene.negative_prompt else ""
    recipe = json.loads(dump_recipe(scene, jobs[0].seed, jobs[0].scales, origin))
    return (
        f"<section><h2>{escape(scene.name)}</h2><p>{escape(scene.prompt)}</p>{avoided}"
        f'<ul>{legend}</ul><div class="row">{"".join(figures)}</div>'
        f"<details><summary>recipe of {escape(jobs[0].file)}</summary>"
        f"<pre>{escape(brief_recipe(recipe))}</pre></details></section>\n"
    )


def page(sections: Sequence[str], num_images: int) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>spatext-sample</title><style>{STYLE}</style></head>\n<body>"
        f"<h1>{count(num_images, 'image')} of {count(len(sections), 'scene')}</h1>"
        '<p><a href="grid.png">all in one picture</a>. Every PNG holds its whole recipe: '
        "<code>spatext-sample recipe=FILE.png</code> paints it again.</p>\n"
        f"{''.join(sections)}</body></html>\n"
    )


def count(num: int, noun: str) -> str:
    return f"{num} {noun}{'s' * (num != 1)}"


def _figure(file: str, caption: str, size: tuple[int, int], *, enlarged: bool = False) -> str:
    link, look = _link(file), ' class="enlarged"' if enlarged else ""
    return (
        f'<figure><a href="{link}"><img{look} src="{link}" alt="{escape(file)}" width="{size[1]}" '
        f'height="{size[0]}" loading="lazy"></a><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _link(file: str) -> str:
    """Relative; a name may hold what means something in an address, a colon even a scheme."""
    return f"./{quote(file)}"


def _times(cell: Pixels, side: int) -> int:
    return max(1, math.ceil(side / min(cell.shape[:2])))


def _title(text: str, height: int) -> Pixels:
    """To the left of a row of a grid, in the middle of its height."""
    font = ImageFont.load_default(max(11, height // 20))
    left, top, right, bottom = map(math.ceil, font.getbbox(text))
    picture = Image.new("RGB", (right - left + 8, height), PAPER)
    place = (4 - left, (height - bottom - top) // 2)
    ImageDraw.Draw(picture).text(place, text, INK, font)
    return np.asarray(picture).copy()
