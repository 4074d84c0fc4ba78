"""Check that docs, docstrings and messages are plain technical English: `python -m tests.language`.

The rules are in CONTRIBUTING.md. This program holds those that a program can hold.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("service/assay_service", "clients/assay_client", "training/assay_training")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", ".github/SECURITY.md", "docs/*.md")
GENERATED = {"docs/experiments.md"}  # of results and findings, which are checked where they are written
MOST_WORDS, MOST_CELL_WORDS = 25, 20

BANNED = {
    r"\btold\b": "reported, printed",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bcomes? to\b|\bcame to\b|\bcoming to\b": "is, results in",
    r"(?<!\bthere )\b(is|are) no (?!longer|more\b)": "is not a",
    r"\bof what\b": "a noun",
    r"\botherwise than\b": "differently from",
    r"\bsay(s)? otherwise\b": "contradict",
    r"\btold apart\b": "distinguished",
    r"\bseeds §": "a key of docs/references.md",
}
NOT_A_NOUN = {
    "of",
    "that",
    "what",
    "to",
    "by",
    "from",
    "as",
    "where",
    "when",
    "with",
    "in",
    "on",
    "at",
    "for",
    "how",
    "is",
    "are",
    "must",
}
NOT_A_VERB = {
    *(
        "what",
        "whether",
        "how",
        "which",
        "when",
        "where",
        "why",
        "who",
        "as",
        "of",
        "at",
        "in",
        "on",
        "by",
        "to",
        "for",
        "from",
        "with",
    ),
    *(
        "the",
        "a",
        "an",
        "this",
        "that",
        "these",
        "those",
        "it",
        "its",
        "all",
        "one",
        "two",
        "each",
        "every",
        "no",
        "not",
        "if",
    ),
    *(
        "same",
        "also",
        "only",
        "none",
        "true",
        "false",
        "here",
        "there",
        "more",
        "most",
        "so",
        "and",
        "or",
        "but",
        "mean",
        "their",
    ),
}


def words(text: str) -> int:
    """Return how many words a text has; code, links and numbers count as one each."""
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return len([word for word in text.split() if re.search(r"\w", word)])


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a paragraph."""
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace(".", "·").replace(";", "·"), text)
    text = re.sub(r"\b(e\.g|i\.e|et al|vs|No|Fig|cf)\.", r"\1", text)
    yield from (part.strip() for part in re.split(r"(?<=[.!?])[)*_\"”]*\s+", text) if part.strip())


def page_faults(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of every long sentence, long table cell and banned word of a Markdown page."""
    for start, paragraph in paragraphs(text):
        for line, part in enumerate(paragraph, start):
            yield from ((line, fault) for fault in banned(part))
        if paragraph[0].startswith("|"):
            cells = (cell for cell in paragraph[0].strip("|").split(" | "))
            yield from ((start, fault) for cell in cells for fault in longer(cell, MOST_CELL_WORDS, "table cell"))
        else:
            joined = re.sub(r"^([-*+]|\d+\.|#+|>)\s+", "", " ".join(paragraph))
            for sentence in sentences(joined):
                yield from ((start, fault) for fault in longer(sentence, MOST_WORDS, "sentence"))


def paragraphs(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the paragraphs, list entries and table rows of a page with the number of their first line; no code."""
    paragraph: list[str] = []
    fenced, start = False, 1
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fence = line.lstrip().startswith("```")
        code = fenced or fence or (line.startswith("    ") and not paragraph)
        fenced = fenced != fence
        if paragraph and (code or not line.strip() or re.match(r"\s*([-*+]\s|\d+\.\s|#+\s|>|\|)", line)):
            yield start, paragraph
            paragraph = []
        if not code and line.strip():
            start = start if paragraph else number
            paragraph.append(line.strip())


def longer(text: str, most: int, kind: str) -> Iterator[str]:
    """Yield a fault if a text has more than `most` words."""
    if (count := words(text)) > most:
        yield f"{count} words in a {kind}: {text.strip()[:90]}"


def banned(text: str) -> Iterator[str]:
    """Yield a fault for every banned word of a text; code is left out."""
    plain = re.sub(r"`[^`]*`", "", text)
    for pattern, better in BANNED.items():
        for found in re.finditer(pattern, plain, flags=re.IGNORECASE):
            yield f"{found[0]!r}: write {better}"


def code_faults(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of docstrings that begin without a verb, and of banned words in texts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (doc := ast.get_docstring(node)):
            first = re.sub(r"^[`\"(\[]+", "", doc).split()[0].strip(".,:;`").lower()
            if first in NOT_A_VERB or not first.isalpha():
                yield node.lineno, f"{node.name}: the docstring begins with {first!r}, not with a verb"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            doc = ast.get_docstring(node) or ""
            line = getattr(node, "lineno", 1)
            for sentence in sentences(" ".join(re.split(r"\n\s*\n|\n\s*(?:\w+: )", doc)[0].split())):
                yield from ((line, fault) for fault in longer(sentence, MOST_WORDS, "sentence"))
            for entry in re.finditer(
                r"^ {4}(\w+): (\w+)", re.split(r"\n(?:Returns|Raises|Yields):", doc)[0], flags=re.M
            ):
                if entry[2].lower() in NOT_A_NOUN:
                    yield line, f"the entry {entry[1]!r} begins with {entry[2]!r}, not with a noun"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((node.lineno, fault) for fault in banned(node.value))


def comment_faults(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of banned words in comments."""
    for number, line in enumerate(source.splitlines(), 1):
        if comment := re.search(r"(?:^|\s)#\s(?!noqa)(.*)", line):
            yield from ((number, fault) for fault in banned(comment[1]))


def faults() -> Iterator[str]:
    """Yield `FILE:LINE: fault` for everything that breaks a rule."""
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            if str(page.relative_to(ROOT)) not in GENERATED:
                yield from (
                    f"{page.relative_to(ROOT)}:{line}: {fault}" for line, fault in page_faults(page.read_text())
                )
    for package in PACKAGES:
        for module in sorted((ROOT / package).rglob("*.py")):
            source = module.read_text()
            for line, fault in sorted({*code_faults(source), *comment_faults(source)}):
                yield f"{module.relative_to(ROOT)}:{line}: {fault}"


if __name__ == "__main__":
    found = list(faults())
    sys.stdout.write("\n".join(found) + f"\n{len(found)} faults\n" if found else "")
    sys.exit(bool(found))
