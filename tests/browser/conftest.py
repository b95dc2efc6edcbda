"""A headless browser, and pages that must not complain nor talk to anyone else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infercam.benchmarks.scale.browser import launched, missing
from tests.shared import SHARED

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Not the session's: while playwright is open, no other test can run an event loop.
    if reason := missing():
        pytest.skip(reason)
    with launched() as found:
        yield found


class Watched:
    """A page, and what it said and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._listen)
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.on("request", lambda r: self.requests.append(r.url))

    def _listen(self, message: Any) -> None:
        read_by_us = "readback operations" in message.text  # the tests read canvases, the pages do not
        if message.type in ("error", "warning") and not read_by_us:
            self.complaints.append(message.text)


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    """Fails the test where the page logs an error or asks for anything that is not beside it."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)  # against hanging only: a busy machine is slow
    it = Watched(page)
    try:
        yield it
        assert it.complaints == []
        own = ("file://", "data:", "blob:", "http://127.0.0.1:")
        assert [url for url in it.requests if not url.startswith(own)] == []
    finally:
        page.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which is not here")
    return SHARED
