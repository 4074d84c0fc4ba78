"""The pages: their links, the keys of their sources, their language, and the examples of the client's page."""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import assay_service
from assay_client import RewardClient, Score
from assay_service.settings import Settings
from assay_service.signal_settings import SignalSettings
from tests import language
from tests.client.test_client_best_of import serve_numbers
from tests.compat.conftest import run_app
from tests.service.conftest import tiny

__all__ = ["tiny"]  # the fixture

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [
    path
    for folder in ("service", "training", "clients", "tests", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md", ".yaml")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_cited_source_is_among_the_references() -> None:
    keys = set(re.findall(r"^- \*\*\[([^\]]+)\]\*\*", (ROOT / "docs/references.md").read_text(), flags=re.M))
    cited = re.compile(r"\[([A-Z][\w .-]+)\](?= (?:section|table|figure|equation|algorithm|chapter|Algorithm))")
    unknown = {key for path in SOURCES for key in cited.findall(path.read_text()) if key not in keys}
    assert "CRS" in keys
    assert not unknown


def test_the_language_check_finds_what_it_is_for() -> None:
    page = "# T\n\nThis is told to nobody.\n\n" + "word " * 26 + "end.\n\n| a |\n|---|\n| " + "cell " * 21 + "|\n"
    assert [line for line, _ in language.page_faults(page)] == [3, 5, 9]
    code = '''def f(a: int) -> int:
    """The number of f.

    Args:
        a: of nothing.
    """
    of = a  # nothing is left out
    raise ValueError("mend it")
'''
    assert {fault for _, fault in language.file_faults("f.py", code)} == {
        "f: the docstring begins with 'the', not with a verb",
        "f: the docstring has no `Raises`",
        "the entry 'a' begins with 'of', not with a noun",
        "'mend': write fix",
        "the name of: 'of what': write a noun",
        "'left out': write dropped, skipped, ignored or omitted",
    }
    long = "word " * 26
    for name, text, lines in (
        ("f.py", f'def f() -> None:\n    """Do.\n\n    Raises:\n        E: {long}\n    """\n', [1]),
        ("f.py", 'class A:\n    """Hold.\n\n    Attributes:\n        b: one.\n        c. d: two.\n    """\n', [1]),
        ("f.py", f'x = "{long}"\ny = f"{{x}} {long[:-5]}"\n# Here {long}\n', [1, 2, 3]),
        ("f.yaml", f"a: 1  # it is told\nquestion: {long}\n", [1, 1]),
        ("f.sh", "# It is told.\n", [1]),
        ("f.js", "// It is told.\nshow(`It is told ${where} here`);\n", [1, 1]),
        ("f.html", f"<p>It is <b>told</b></p><li>{long}</li>", [1, 1]),
        ("tests/f.py", "class Told:\n    pass\n", [1]),
    ):
        assert [line for line, _ in sorted(language.file_faults(name, text))] == lines, name
    assert not list(language.page_faults("```\n" + "told " * 40 + "\n```\n\n    told\n\nFine: `told`.\n"))


CONFIG = """
signals:
  preference: {base: base, adapter: pref}
  absolute: {base: base, adapter: abs}
blends:
  crs: {weights: {preference: 0.25, absolute: 0.75}}
default: crs
"""
EXAMPLES: list[str] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/client.md").read_text(), flags=re.S | re.M)
EXAMPLES += re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.S | re.M)


@pytest.fixture(scope="module")
def config(tiny: dict[str, Any]) -> Path:
    """Tiny models under the names that the pages use."""
    file: Path = tiny["root"] / "page.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="module")
def url(config: Path) -> Iterator[str]:
    with run_app(assay_service.create_app(assay_service.read_settings(config))) as served:
        yield served.url


@pytest.fixture
def run(url: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run an example as it is but for addresses, in a folder with the files that it reads, and return its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assay_service, "EMBEDDED", config)
    (tmp_path / "assay.key").write_text("k-1\n")
    shutil.copytree(config.parent / "base", tmp_path / "policy")
    with serve_numbers() as policy:
        here = {
            "http://127.0.0.1:8000": url,
            "https://rewards.example": url,
            "http://gpu-0:8000": url,
            "http://gpu-1:8000": url.replace("127.0.0.1", "localhost"),
            "http://127.0.0.1:8001/v1": policy.url,
        }

        def start(code: str) -> dict[str, Any]:
            for theirs, ours in here.items():
                code = code.replace(theirs, ours)
            names: dict[str, Any] = {}
            exec(compile(code, "example", "exec"), names)
            return names

        yield start


@pytest.mark.parametrize("page", ["serve.md", "checkpoints.md"])
def test_declarations_have_right_keys_and_values(page: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / page).read_text(), flags=re.S | re.M)
    assert len(blocks) >= 2
    for block in map(yaml.safe_load, blocks):
        signals = block.pop("signals", {"one": block})
        for signal in signals.values():
            SignalSettings.model_validate({"base": "base"} | signal)
        if "blends" in block:
            Settings.model_validate(block | {"signals": signals, "directory": ROOT})


def find(word: str) -> str:
    found: list[str] = [code for code in EXAMPLES if word in code]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_of_the_client_runs_by_itself(run: Any, code: str) -> None:
    assert run(code)


def test_the_examples_give_what_the_page_says(run: Any, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(find("client.render"))
    assert [type(row) for row in first["result"].data] == [Score, Score]
    with RewardClient(url) as client:
        finished, cut = client.score(
            [("How do I bake bread?", "Mix.", "stop"), ("How do I bake bread?", "Mix", "length")]
        ).scores()
        hello = client.score([("Hi", "Hello.", "stop")]).scores()
    assert run(find("reward_function"))["rewards"] == [finished, cut]
    capsys.readouterr()
    run(find("tokenizer_sha256"))
    assert capsys.readouterr().out == f"{hello}\n"
    run(find("api_key="))
    assert capsys.readouterr().out == "['preference', 'absolute', 'crs']\n"
    best = run(find("best_of_n"))["best"]
    assert len({*best.scores}) == 8
    assert best.score == max(best.scores)
    assert math.isfinite(best.score)
