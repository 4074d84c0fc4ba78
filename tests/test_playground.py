"""The page at `/`, in a browser, against the embedded models behind a real socket."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from scipy.stats import rankdata

from assay_service import create_app
from assay_service.settings import EMBEDDED, read_settings
from tests.browser import start_browser
from tests.compat.conftest import run_app

expect.set_options(timeout=30_000)
THROAT = "What can I do against a sore throat?"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_app(create_app(read_settings(EMBEDDED))) as served:
        yield served.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as started:
        yield started


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[Open]:
    """A function that opens the page; a script that fails, or that the page may not run, fails the test."""
    context = browser.new_context()
    context.set_default_timeout(30_000)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    messages: list[str] = []

    def start(scheme: Any = "light") -> Page:
        page = context.new_page()
        page.emulate_media(color_scheme=scheme)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(url)
        page.locator("#ranking li").first.wait_for()
        return page

    yield start
    context.close()
    assert not [text for text in messages if not text.startswith("Failed to load resource")]


def ranked(url: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{url}/v1/rank", json=body, timeout=60).raise_for_status().json()
    return answer


def shown_order(page: Page) -> list[int]:
    """The numbers of the completions, from 1, as the ranking shows them."""
    return [int(title.removeprefix("Completion ")) for title in page.locator("#ranking h3").all_inner_texts()]


def read_completions(page: Page) -> list[str]:
    return [area.input_value() for area in page.locator("#completions textarea").all()]


def test_the_page_ranks_its_example_as_the_service_does(url: str, open_page: Open) -> None:
    page = open_page()
    answer = ranked(url, prompt=THROAT, completions=read_completions(page))
    assert len(answer["results"]) == 4
    assert shown_order(page) == [row["index"] + 1 for row in answer["results"]]
    scores = [float(text) for text in page.locator("#ranking strong").all_inner_texts()]
    assert scores == pytest.approx([row["score"] for row in answer["results"]], rel=1e-3)
    first = page.locator("#ranking li").first.locator("tbody tr")
    values = answer["results"][0]["signals"]
    assert first.locator("th").all_inner_texts() == list(values) == ["preference", "absolute"]
    probability = first.nth(1).locator("td").nth(1).inner_text()
    assert float(probability) == pytest.approx(values["absolute"]["prob"], rel=1e-3)
    assert first.nth(0).locator("td").nth(1).inner_text() == "–"  # a preference logit has no probability
    tokens = f"{values['absolute']['prompt_tokens']} + {values['absolute']['completion_tokens']}"
    assert first.nth(1).locator("td").nth(2).inner_text() == tokens


def test_keys_alone_move_a_weight_and_rank_again(url: str, open_page: Open) -> None:
    page = open_page()
    page.locator("#weight-absolute").focus()
    page.keyboard.press("Home")  # -1: the worst quality first
    page.locator("#weight-preference").focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")  # from 0.25 to 0
    expect(page.locator("#sliders output")).to_have_text(["0.00", "-1.00"])
    assert page.locator("#model").input_value() == ""
    expected = ranked(url, prompt=THROAT, completions=read_completions(page), weights={"preference": 0, "absolute": -1})
    order = [f"Completion {row['index'] + 1}" for row in expected["results"]]
    expect(page.locator("#ranking h3")).to_have_text(order)


def test_keys_alone_add_a_completion_and_switch_views(open_page: Open) -> None:
    page = open_page()
    page.locator("#add").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("Gargle with warm salt water.")  # the new text has the focus
    expect(page.locator("#ranking li")).to_have_count(5)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # its button to remove it
    expect(page.locator("#ranking li")).to_have_count(4)
    page.locator("#tab-rank").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-file")).to_be_focused()
    expect(page.locator("#view-file")).to_be_visible()
    expect(page.locator("#view-rank")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#view-rank")).to_be_visible()


def test_the_marked_text_is_what_the_heads_read(url: str, open_page: Open) -> None:
    page = open_page()
    page.locator("#completion-1").fill("Tea 🫖 – and rest!")
    expect(page.locator("#ranking")).to_contain_text("🫖")
    card = page.locator("#ranking li").filter(has_text="🫖")
    card.locator("summary").click()
    expect(card.locator("mark")).to_have_count(2)
    assert card.locator("mark").all_inner_texts() == ["Tea 🫖 – and rest![SEP]", "[CLS]"]


def test_an_item_without_a_score_shows_its_error(open_page: Open) -> None:
    page = open_page()
    page.locator("#completion-2").fill("")
    page.locator("#completions [type=checkbox]").nth(1).check()
    failed = page.locator("#ranking .failed")
    expect(failed).to_contain_text("Completion 2: no score")
    expect(failed).to_contain_text("(empty_completion)")
    expect(page.locator("#ranking li")).to_have_count(4)
    expect(page.locator("#status")).to_contain_text("1 without a score")


def test_a_refused_request_and_a_service_that_is_gone_are_reported(open_page: Open) -> None:
    page = open_page()
    for option in ("preference", "absolute"):
        page.locator(f"#weight-{option}").fill("0")
    expect(page.locator("#status")).to_contain_text("at least one weight must not be zero")
    expect(page.locator("#ranking li")).to_have_count(0)
    page.route("**/v1/rank", lambda route: route.abort())
    page.locator("#model").select_option("crs")
    expect(page.locator("#status")).to_contain_text("cannot be reached")


def test_scored_texts_never_become_markup(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    attack = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    page.locator("#completion-1").fill(attack)
    expect(page.locator("#ranking")).to_contain_text("onerror")
    page.locator("#ranking li").filter(has_text="onerror").locator("summary").click()
    page.locator("#ranking mark").first.wait_for()
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": attack, "completion": attack}) + "\n")
    page.locator("#tab-file").click()
    page.set_input_files("#file", path)
    page.locator("#report .chart").first.wait_for()
    assert page.locator("img, main script").count() == 0
    assert page.title() == "Assay"


def test_the_copied_commands_give_the_ranking(open_page: Open) -> None:
    page = open_page()
    page.locator("#completion-1").fill('It\'s "warm" tea\\with $HOME `honey` 🫖\nand rest.')
    page.locator("#completions [type=checkbox]").nth(2).check()
    page.locator("#weight-preference").fill("0.5")
    expect(page.locator("#ranking")).to_contain_text("$HOME")
    commands = []
    for button in page.locator(".copy").all():
        button.click()
        expect(button).to_have_text("Copied")
        commands.append(page.evaluate("navigator.clipboard.readText()"))
    curl = subprocess.run(["bash", "-c", commands[0]], capture_output=True, text=True, check=True, timeout=60)
    rows = json.loads(curl.stdout)["results"]
    assert shown_order(page) == [row["index"] + 1 for row in rows]
    python = subprocess.run([sys.executable, "-c", commands[1]], capture_output=True, text=True, check=True, timeout=60)
    assert python.stdout.split("\n")[:-1] == [f"{row['index']} {row['score']}" for row in rows]


def write_rows(path: Path) -> list[dict[str, Any]]:
    """Write a file with two pairs, a group, a conversation and three faulty lines; return the nine items of it."""
    rows: list[Any] = [
        {"prompt": THROAT, "chosen": "Drink tea with honey.", "rejected": "Shut up."},
        {"prompt": "Why is the sky blue?", "chosen": "Air scatters blue light most.", "rejected": "It is."},
        {"prompt": THROAT, "completions": ["Rest.", "The tower is open.", {"completion": "Gargle with salt water."}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
        {"prompt": "Hi", "completion": "", "finish_reason": "length"},
    ]
    lines = [json.dumps(row) for row in rows] + ["no JSON", json.dumps({"prompt": "alone"}), json.dumps([1])]
    path.write_text("\n".join(lines))
    pairs = [{"prompt": row["prompt"], "completion": row[side]} for row in rows[:2] for side in ("chosen", "rejected")]
    group = [
        {"prompt": THROAT, "completion": text} for text in ("Rest.", "The tower is open.", "Gargle with salt water.")
    ]
    return [*pairs, *group, *rows[3:]]


def test_a_file_is_scored_and_summarized(url: str, open_page: Open, tmp_path: Path) -> None:
    items = write_rows(tmp_path / "rows.jsonl")
    page = open_page()
    page.locator("#tab-file").click()
    page.set_input_files("#file", tmp_path / "rows.jsonl")
    expect(page.locator("#file-status")).to_have_text(
        "All 9 items of rows.jsonl: 8 have a score, and 3 lines are faulty."
    )
    weights = {"preference": 1, "absolute": 1}
    answer = httpx.post(f"{url}/v1/score", json={"items": items, "weights": weights}, timeout=60).json()["data"]
    scored = [row["signals"] for row in answer if "error" not in row]
    logits = {name: np.array([row[name]["logit"] for row in scored]) for name in weights}
    cells = page.locator("#report table").first.locator("tbody tr")
    for place, name in enumerate(weights):
        lengths = [row[name]["completion_tokens"] for row in scored]
        values = logits[name]
        expected = [values.mean(), values.std(ddof=1), values.min(), values.max(), np.corrcoef(values, lengths)[0, 1]]
        found = [float(text) for text in cells.nth(place).locator("td").all_inner_texts()]
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    rho = np.corrcoef(np.array([rankdata(values) for values in logits.values()]))[0, 1]
    expect(page.locator("#report")).to_contain_text(f"Rank correlation (Spearman): {float(f'{rho:.4g}')}")
    faults = page.locator("#report table").last.locator("tbody")
    assert faults.locator("th").all_inner_texts() == ["6", "7", "8", "5"]
    assert "(empty_completion)" in faults.inner_text()
    with page.expect_download() as download:
        page.locator("#save").click()
    saved = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert [row["line"] for row in saved] == [1, 1, 2, 2, 3, 3, 3, 4, 5]
    assert [row.get("signals") for row in saved] == [row.get("signals") for row in answer]


def test_a_second_file_takes_the_place_of_the_first(open_page: Open, tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("\n".join(json.dumps({"prompt": f"Question {i}", "completion": "Yes."}) for i in range(2000)))
    second.write_text(json.dumps({"prompt": "Hi", "completion": "Hello."}))
    page = open_page()
    page.locator("#tab-file").click()
    page.set_input_files("#file", first)
    expect(page.locator("#stop")).to_be_enabled()
    page.set_input_files("#file", second)
    expect(page.locator("#file-status")).to_contain_text("All 1 items of second.jsonl")
    page.wait_for_timeout(500)
    expect(page.locator("#file-status")).to_contain_text("second.jsonl")


def test_a_stopped_file_shows_what_is_scored(open_page: Open, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"Question {i}", "completion": "Yes."}) for i in range(5000)))
    page = open_page()
    page.locator("#tab-file").click()
    page.set_input_files("#file", path)
    expect(page.locator("#file-status")).to_contain_text("of 5000 items")
    page.locator("#stop").click()
    expect(page.locator("#file-status")).to_contain_text("Stopped after")
    page.locator("#report .chart").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(scheme: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(scheme)
    page.locator("#ranking summary").first.click()
    page.locator("#ranking mark").first.wait_for()
    page.locator("#completion-2").fill("")
    page.locator("#completions [type=checkbox]").nth(1).check()
    page.locator("#ranking .failed").wait_for()
    ranking = Axe().run(page)
    assert ranking.violations_count == 0, ranking.generate_report()
    write_rows(tmp_path / "rows.jsonl")
    page.locator("#tab-file").click()
    page.set_input_files("#file", tmp_path / "rows.jsonl")
    page.locator("#report .chart").first.wait_for()
    report = Axe().run(page)
    assert report.violations_count == 0, report.generate_report()


@pytest.mark.parametrize("values", [[1.0, 1.0, 3.0, 2.0, 2.0, 2.0], [0.5], [2.0, 2.0], [-3.5, 1e9, 0.0, 7.25]])
def test_the_statistics_are_those_of_scipy(values: list[float], open_page: Open) -> None:
    page = open_page()
    code = """async (values) => {
        const module = await import('/playground/statistics.js');
        return {
            ranks: module.rankAll(values), mean: module.mean(values), deviation: module.deviation(values),
            same: module.correlate(values, values), bins: module.bin(values, 4),
        };
    }"""
    found = page.evaluate(code, values)
    assert found["ranks"] == (rankdata(values) - 1).tolist()
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["deviation"] == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0)
    assert found["same"] == (pytest.approx(1) if len(set(values)) > 1 else None)
    assert sum(part["count"] for part in found["bins"]) == len(values)


def test_the_page_may_load_nothing_from_elsewhere(url: str) -> None:
    for path in ("/", "/playground/main.js", "/playground/style.css"):
        answer = httpx.get(f"{url}{path}").raise_for_status()
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "/" not in httpx.get(f"{url}/openapi.json").json()["paths"]


def test_a_switch_turns_the_page_off() -> None:
    settings = read_settings(EMBEDDED).model_copy(update={"playground": False})
    with run_app(create_app(settings)) as served:
        for path in ("/", "/playground/main.js"):
            answer = httpx.get(f"{served.url}{path}")
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "not_found"


def test_a_file_is_sent_in_parts_that_the_service_accepts(browser: Browser, tmp_path: Path) -> None:
    limited = read_settings(EMBEDDED)
    limits = limited.limits.model_copy(update={"max_items": 2})
    write_rows(tmp_path / "rows.jsonl")
    with run_app(create_app(limited.model_copy(update={"limits": limits}))) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.locator("#tab-file").click()
        page.set_input_files("#file", tmp_path / "rows.jsonl")
        expect(page.locator("#file-status")).to_contain_text("All 9 items of rows.jsonl: 8 have a score")
        page.close()
