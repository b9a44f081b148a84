"""A real browser before a real server. Needs Chromium and the extra `browser`: `make test-web`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pages import serving

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # containers seldom allow one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def address(checkpoint: Path) -> Iterator[str]:
    with serving(checkpoint, "limits.max_waiting=3") as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """SPATEXT_CHROMIUM names the program; otherwise it is looked for."""
    program = os.environ.get("SPATEXT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")
    assert program, "found no Chromium; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, loaded in a new profile. Whatever it says in the console or asks of another host
    fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("console", lambda message: check_message(message.text, wrong))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: check_address(request.url, address, wrong))
    page.goto(address)
    page.wait_for_selector("body.ready")
    yield page
    context.close()
    assert wrong == []


def check_message(text: str, wrong: list[str]) -> None:
    if not text.startswith("Failed to load resource"):  # that is how a refusal is logged
        wrong.append(text)


def check_address(url: str, address: str, wrong: list[str]) -> None:
    if not url.startswith((f"{address}/", "data:", "blob:")):
        wrong.append(f"asked for {url}")


@pytest.fixture(scope="session")
def shots() -> Path:
    """Where screenshots are left: SPATEXT_SHOTS, or outputs/web."""
    folder = Path(os.environ.get("SPATEXT_SHOTS", "outputs/web"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
