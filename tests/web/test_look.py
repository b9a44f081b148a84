"""How the page looks on screens of several sizes, in dark and in light, and what it is called."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from gestures import generate


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 768), (390, 844)])
def test_nothing_sticks_out_in_dark_and_light(
    page: Page, shots: Path, width: int, height: int
) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.select_option("#examples", "0")
    page.wait_for_selector("#canvas-hint", state="hidden")
    generate(page)
    for square in ("#canvas", "#picture"):
        box = page.locator(square).bounding_box()
        assert box is not None
        assert abs(box["width"] - box["height"]) < 2
        assert box["width"] > 250
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0
        page.screenshot(path=shots / f"7-{width}-{theme}.png", full_page=width < 1440)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_every_control_has_a_name_and_every_text_a_contrast(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, canvas, a")]
          .filter((field) => !(field.ariaLabel || field.labels?.length || field.innerText?.trim()))
          .map((field) => field.outerHTML)"""
    )
    assert nameless == []
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        for ink, ground in (
            ("--ink", "--surface"), ("--muted", "--surface"), ("--muted", "--ground"),
            ("--muted", "--sunken"), ("--accent", "--surface"), ("--accent", "--accent-soft"),
            ("--on-accent", "--accent"), ("--wrong", "--wrong-soft"), ("--wrong", "--surface"),
        ):  # fmt: skip
            assert contrast(token(page, ink), token(page, ground)) >= 4.5, (theme, ink, ground)


def token(page: Page, name: str) -> list[float]:
    colour = page.evaluate(
        """(name) => {
          const probe = document.body.appendChild(document.createElement("i"));
          probe.style.color = `var(${name})`;
          const { color } = getComputedStyle(probe);
          probe.remove();
          return color;
        }""",
        name,
    )
    return [int(part) / 255 for part in colour[4:-1].split(",")]


def contrast(ink: list[float], ground: list[float]) -> float:
    """WCAG 2.2: ratio of relative luminances."""

    def luminance(rgb: list[float]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))

    dark, light = sorted((luminance(ink), luminance(ground)))
    return (light + 0.05) / (dark + 0.05)
