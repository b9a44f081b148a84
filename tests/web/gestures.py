"""What a person does on the page, and what is then to be seen."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

DONE = "#stage[data-state=done]"


def drag(page: Page, *points: tuple[float, float]) -> None:
    """The pointer over the canvas, in fractions of it."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def choose(page: Page, tool: str) -> None:
    page.locator(f"input[name=tool][value={tool}]").check(force=True)


def canvas(page: Page) -> np.ndarray:
    """What the canvas shows, in pixels of the screen."""
    page.wait_for_timeout(100)  # it is drawn at the next frame
    url = page.evaluate("document.getElementById('canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


def at(picture: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    colour = picture[int(y * picture.shape[0]), int(x * picture.shape[1])]
    return tuple(colour.tolist())


def looks(colour: tuple[int, ...], name: str) -> bool:
    wanted = [int(name[k : k + 2], 16) for k in (1, 3, 5)]
    return bool(np.abs(np.subtract(colour, wanted)).max() < 30)


def ids(page: Page) -> np.ndarray:
    """What an order would hold, seen in the request for a scene file."""
    with page.expect_request("**/api/scene.zip") as request, page.expect_download():
        page.click("#save")
    order = request.value.post_data_json
    return np.frombuffer(base64.b64decode(order["ids"]), np.uint8).reshape(order["size"])


def say(page: Page, region: int, text: str) -> None:
    page.get_by_label(f"Region {region}: what belongs here").fill(text)


def paint_two(page: Page) -> None:
    page.fill("#prompt", "a sandy beach")
    choose(page, "rectangle")
    drag(page, (0.05, 0.3), (0.4, 0.9))
    say(page, 1, "a red circle")
    page.click("#add-region")
    drag(page, (0.6, 0.3), (0.95, 0.9))
    say(page, 2, "a blue sea")


def shown(page: Page) -> np.ndarray:
    data = page.evaluate(
        """async () => {
          const blob = await (await fetch(document.getElementById("picture").src)).blob();
          return Array.from(new Uint8Array(await blob.arrayBuffer()));
        }"""
    )
    return np.asarray(Image.open(io.BytesIO(bytes(data))))


def generate(page: Page) -> np.ndarray:
    with page.expect_response("**/api/jobs") as answer:
        page.click("#generate")
    assert answer.value.status == 202, answer.value.text()
    picture = f"/api/jobs/{answer.value.json()['id']}/picture.png"
    expect(page.locator("#picture")).to_have_attribute("src", picture)
    return shown(page)


def download(page: Page, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_bytes()
