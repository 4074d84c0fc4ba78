"""Start the browser in which the tests read the page of the service."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.real_tokenizers import unavailable

NAMES = ("chromium", "chromium-browser", "google-chrome")
# As root in a container, Chromium needs its sandbox off; the other switches keep it from calling its maker.
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_browser() -> Path:
    """Return the installed Chromium; where there is none, skip the calling test, or fail it with `CI=true`."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        unavailable("no Chromium is installed")
        raise AssertionError("unavailable() raises")
    return Path(found)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Run a headless Chromium within the block."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=list(SWITCHES))
        yield started
        started.close()
