"""The page at `/` of a service with keys: it asks for one, and keeps it in its memory alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from assay_service import create_app
from assay_service.keys import add_key
from tests.browser import start_browser
from tests.compat.conftest import run_app


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as started:
        yield started


def test_the_page_asks_for_a_key_and_shows_it_nowhere(tiny: dict[str, Any], browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    key, other = add_key(file, "anna-key", ("score",)), add_key(file, "scraper", ("metrics",))
    with run_app(create_app(tiny["settings"].model_copy(update={"keys": str(file)}))) as served:
        page = browser.new_context().new_page()
        page.set_default_timeout(30_000)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(served.url)
        expect(page.locator("#failure")).to_contain_text("an API key is required")
        assert Axe().run(page, "#key-form").violations_count == 0
        for wrong, answer in (("assay_wrong", "the API key is not valid"), (other, "needs a key with the scope score")):
            page.locator("#key").fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#failure")).to_contain_text(answer)
        page.locator("#key").fill(key)
        page.keyboard.press("Enter")
        page.locator("#ranking li").first.wait_for()
        expect(page.locator("#key-form")).to_be_hidden()
        expect(page.locator("#failure")).to_be_hidden()
        assert "Bearer $(cat assay.key)" in page.locator("#curl").inner_text()
        assert "api_key=" in page.locator("#python").inner_text()
        stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
        assert key not in page.content() + stored
        assert page.locator("#key").input_value() == ""
        assert json.loads(stored)[:3] == [{}, {}, ""]
        assert faults == []
        # Without a key, the page has only what every installation of this version has.
        text = httpx.get(served.url).text
        assert not [name for name in ("mix_std", "anna-key", "scraper") if name in text]
        assert httpx.get(f"{served.url}/playground/../keys.yaml").status_code == 401
