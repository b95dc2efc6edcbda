"""A headless Chromium through Playwright, for what a page really does; shared with tests/browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def executable() -> str | None:
    """The first browser of NAMES on the PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def missing() -> str | None:
    """Why no browser can be driven here; None: one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "needs the package playwright: pip install 'infercam[dev]'"
    if executable() is None:
        return (
            f"needs a browser on the PATH: {', '.join(NAMES)} (`make test` installs one, as root under apt)"
        )
    return None


@contextmanager
def launched() -> Iterator[Any]:
    """A headless browser (playwright's Browser); raises RuntimeError with the reason where there is none."""
    if reason := missing():
        raise RuntimeError(reason)
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox to root; small containers have little shared memory.
    options = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=options)
        try:
            yield browser
        finally:
            browser.close()
