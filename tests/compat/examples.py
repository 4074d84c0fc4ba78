"""Read the fenced blocks of the pages, for the tests that run them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
# Every block of these pages belongs to the test that runs it; `test_pages.py` holds the list.
PAGES = sorted(path.stem for kind in ("trainer", "server", "compat", "gateway") for path in DOCS.glob(f"{kind}*.md"))

Block = tuple[str, str]  # the word behind the fence, and the text


def read_blocks(page: str) -> list[Block]:
    """Return all fenced blocks of a page, in order."""
    found: list[Block] = re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / f"{page}.md").read_text(), flags=re.S | re.M)
    return found


def read_texts(page: str, kind: str) -> list[str]:
    """Return the blocks of one kind, such as "python"; flags of command lines have the kind ""."""
    found = [text for name, text in read_blocks(page) if name == kind]
    assert found
    return found
