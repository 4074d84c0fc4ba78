"""The pages: their links, the keys of their sources, and the language of pages and docstrings."""

import re
from pathlib import Path

import pytest

from tests import language

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
    raise ValueError("mend it")
'''
    assert [fault for _, fault in language.code_faults(code)] == [
        "f: the docstring begins with 'the', not with a verb",
        "the entry 'a' begins with 'of', not with a noun",
        "'mend': write fix",
    ]
    assert not list(language.page_faults("```\n" + "told " * 40 + "\n```\n\n    told\n\nFine: `told`.\n"))
