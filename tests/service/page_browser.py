"""Chromium for the tests of the page: fixtures, a watch over what a page does, and what a person does.

Fixtures reach a test module through `pytest_plugins`. The browser lives as long as a module: Playwright's
loop runs in the main thread, where tests of other modules start loops of their own.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from page_stub import Told, stub, told
from PIL import Image
from playwright import sync_api
from serviceapp import served

CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
expect = sync_api.expect
REFUSED = "Failed to load resource: the server responded with a status of"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


class Watch:
    """What a page did that it should not: console errors, dialogs, requests to others."""

    def __init__(self, page: Any, home: str) -> None:
        self.wrong: list[str] = []
        self.refusals: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        page.on("console", self._console)
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._request(request.url, home))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            told = self.refusals if message.text.startswith(REFUSED) else self.wrong
            told.append(f"console: {message.text}")

    def _request(self, url: str, home: str) -> None:
        if not url.startswith((home + "/", "blob:" + home, "data:")):
            self.wrong.append(f"request: {url}")


@pytest.fixture
def state() -> Told:
    return told()


@pytest.fixture
def home(state: Told) -> Iterator[str]:
    with served(stub(state)) as address:
        yield address


@pytest.fixture
def page(browser: Any, home: str) -> Iterator[Any]:
    yield from opened(browser, home)


def opened(browser: Any, home: str, **options: Any) -> Iterator[Any]:
    """A fresh page; refusals are in `page.refusals`, for tests that expect them."""
    context = browser.new_context(base_url=home, reduced_motion="reduce", **options)
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.watch = Watch(page, home)
    yield page
    context.close()
    assert not page.watch.wrong
    assert not page.watch.refusals or getattr(page, "refusals", False), page.watch.refusals


def photo(colour: tuple[int, int, int] = (30, 60, 160), size: tuple[int, int] = (1600, 900)) -> bytes:
    """A JPEG with a place and a camera in its metadata."""
    exif = Image.Exif()
    exif[0x010F] = "Secret camera"
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def files(*colours: tuple[int, int, int]) -> list[dict[str, Any]]:
    return [
        {"name": f"creative {i}.jpg", "mimeType": "image/jpeg", "buffer": photo(colour, (400, 400))}
        for i, colour in enumerate(colours, 1)
    ]


def give(page: Any, event: str, data: bytes, target: str = "body") -> None:
    """A file dropped or pasted, as the browser would hand it over."""
    page.evaluate(
        """([event, base64, target]) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "photo.jpg", { type: "image/jpeg" }));
            const options = { bubbles: true, cancelable: true };
            document.querySelector(target).dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
                : new DragEvent(event, { ...options, dataTransfer: transfer }));
        }""",
        [event, base64.b64encode(data).decode(), target],
    )


def search(page: Any, words: str) -> None:
    page.get_by_role("searchbox").fill(words)
    page.get_by_role("button", name="Search", exact=True).click()


def titles(page: Any) -> list[str]:
    found: list[str] = page.locator(".results .card h3").all_inner_texts()
    return found
