"""Check that docs, docstrings, comments and messages are plain technical English: `python -m tests.language`.

The rules are in CONTRIBUTING.md. This program holds those that a program can hold.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FILES = (
    *(
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        ".github/*.md",
        "docs/*.md",
        "service/**/*.md",
        "training/**/*.md",
    ),
    *("service/**/*.py", "clients/**/*.py", "training/**/*.py", "benchmarks/**/*.py", "examples/*.py", "tests/*.py"),
    *(
        "helm/*.yaml",
        "helm/files/*.py",
        "tests/chart/*.py",
        "tests/client/**/*.py",
        "tests/coverage/*.py",
        "tests/service/*.py",
        "tests/training/*.py",
    ),
    *("service/**/*.js", "service/**/*.html", "findings/*.sh", "Makefile", ".github/**/*.yml"),
    *("service/**/*.yaml", "training/**/*.yaml", "examples/**/*.yaml", "tests/**/*.yaml"),
)
# Pages of results, texts of models, and this file, which has the banned words.
SKIPPED = re.compile(r"docs/(experiments|references)\.md|.*/MODEL_CARD\.md|tests/(language|test_docs)\.py")
MOST_WORDS, MOST_CELL_WORDS = 25, 20
Faults = Iterator[tuple[int, str]]
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)

BRITISH = (
    "colour|neighbour|behaviour|favour|honour|licences?\\b|misspelt|grey\\b|analys(e[sd]?|ing)\\b|"
    "(normal|optim|recogn|initial|serial|token|minim|maxim|summar|random)is(e(?!r)|ing|ation)|(normal|token)iser"
)
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
    r"\bthesis\b": "[CRS], its key in docs/references.md",
    r"\b(left|leaves?|leaving) out\b": "dropped, skipped, ignored or omitted",
    rf"\b({BRITISH})": "the American spelling",
}
PREPOSITIONS = "of what to by from as where when with in on at for how"
NOT_A_NOUN = set(f"{PREPOSITIONS} that is are must".split())
NOT_A_VERB = set(
    f"{PREPOSITIONS} whether which why who the a an this that these those it its all one two each every no not if same "
    "also only none true false here there more most so and or but mean their".split()
)


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


def find_long(text: str) -> Iterator[str]:
    """Yield a fault for every sentence with too many words."""
    for sentence in sentences(" ".join(text.split())):
        yield from longer(sentence, MOST_WORDS, "sentence")


def page_faults(text: str) -> Faults:
    """Yield the line and the fault of every long sentence, long table cell and banned word of a Markdown page."""
    for start, paragraph in paragraphs(text):
        for line, part in enumerate(paragraph, start):
            yield from ((line, fault) for fault in banned(part))
        if paragraph[0].startswith("|"):
            cells = (cell for cell in paragraph[0].strip("|").split(" | "))
            yield from ((start, fault) for cell in cells for fault in longer(cell, MOST_CELL_WORDS, "table cell"))
        else:
            joined = re.sub(r"^([-*+]|\d+\.|#+|>)\s+", "", " ".join(paragraph))
            yield from ((start, fault) for fault in find_long(joined))


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


def banned(text: str, patterns: dict[str, str] = BANNED) -> Iterator[str]:
    """Yield a fault for every banned word of a text; code is skipped."""
    plain = re.sub(r"`[^`]*`", "", text)
    for pattern, better in patterns.items():
        for found in re.finditer(pattern, plain, flags=re.IGNORECASE):
            yield f"{found[0]!r}: write {better}"


def code_faults(tree: ast.Module) -> Faults:
    """Yield the line and the fault of the docstrings and messages of a module."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from function_faults(node)
        if isinstance(node, DOCUMENTED):
            yield from docstring_faults(ast.get_docstring(node) or "", getattr(node, "lineno", 1))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((node.lineno, fault) for fault in banned(node.value))
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docs:
            # A message has the form "what is wrong; what to do", which counts as two sentences.
            for part in re.split(r"\n\s*\n|\n +[-*] |; |(?<=\S): ", message(node)):
                yield from ((node.lineno, fault) for fault in find_long(part))
    yield from raise_faults(tree)


def test_faults(tree: ast.Module) -> Faults:
    """Yield the line and the fault of banned words in the docstrings of tests, which are statements."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            yield from ((getattr(node, "lineno", 1), fault) for fault in banned(ast.get_docstring(node) or ""))


def message(node: ast.Constant | ast.JoinedStr) -> str:
    """Return a text as it is printed; each value that is filled in counts as one word."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "value" for part in parts)


def function_faults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Faults:
    """Yield the fault of a function's docstring that does not begin with a verb."""
    if doc := ast.get_docstring(node):
        first = re.sub(r"^[`\"(\[]+", "", doc).split()[0].strip(".,:;`").lower()
        if first in NOT_A_VERB or not first.isalpha():
            yield node.lineno, f"{node.name}: the docstring begins with {first!r}, not with a verb"


def raise_faults(parent: ast.Module | ast.ClassDef) -> Faults:
    """Yield the public functions and methods that raise an error, but whose docstrings have no `Raises`."""
    for node in parent.body:
        if isinstance(node, ast.ClassDef):
            yield from raise_faults(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # The docstring of a command is its help.
            public = not node.name.startswith("_") and ".command(" not in "".join(map(ast.unparse, node.decorator_list))
            if public and any(find_raises(node)) and "Raises:" not in (ast.get_docstring(node) or ""):
                yield node.lineno, f"{node.name}: the docstring has no `Raises`"


def find_raises(node: ast.AST) -> Iterator[ast.Raise]:
    """Yield the `raise` statements of a function, without those of functions in it, and those that raise again."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and child.exc is not None:
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from find_raises(child)


def docstring_faults(doc: str, line: int) -> Faults:
    """Yield the faults of a docstring's sentences, and of the entries of its `Args`."""
    prose = re.sub(r"(?m)^.*(?:[├│└]|^\|).*$", "", doc)  # neither trees nor tables
    for part in re.split(r"\n\s*\n|\n {0,4}(?=[`\w][`\w, ]*(?:: |  ))|\n\s*(?:[-*]|\d+\.) ", prose):
        yield from ((line, fault) for fault in find_long(part))
    for section in re.finditer(r"^(?:Args|Attributes|Raises):\n((?: {4}.*\n?)+)", doc, flags=re.M):
        for entry in re.findall(r"^ {4}(?! ).*", section[1], flags=re.M):
            if not re.match(r" {4}[\w`*.]+(?:, [\w`*.]+)*: ", entry):
                yield line, f"an entry has no name, or its second line is not indented: {entry.strip()!r}"
    for entry in re.finditer(r"^ {4}(\w+): (\w+)", re.split(r"\n(?:Returns|Raises|Yields):", doc)[0], flags=re.M):
        if entry[2].lower() in NOT_A_NOUN:
            yield line, f"the entry {entry[1]!r} begins with {entry[2]!r}, not with a noun"


def name_faults(tree: ast.AST) -> Faults:
    """Yield the faults of the names that a module gives to variables, arguments, functions and classes."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                spaced = "of what" if name == "of" else name.replace("_", " ")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ")
            case _:
                continue
        yield from ((node.lineno, f"the name {name}: {fault}") for fault in banned(spaced))


def comment_faults(text: str, mark: str = "#") -> Faults:
    """Yield the line and the fault of banned words and long sentences in comments."""
    block: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        whole = re.match(rf"\s*(?:{mark}|/?\*+)\s(?!noqa|\s{{3}})(.*)", line)  # indented comments are code
        found = whole or re.search(rf"\s{mark}\s(?!noqa)(.*)", line)
        if found:
            yield from ((number, fault) for fault in banned(found[1]))
        if found and not whole:
            yield from ((number, fault) for fault in find_long(found[1]))
        if not whole:
            yield from ((number - 1, fault) for fault in find_long(" ".join(block)))
        block = [*block, whole[1]] if whole else []


def text_faults(texts: Iterable[str]) -> Faults:
    """Yield the faults of texts that are shown, each with the line 1, since their lines are not known."""
    for text in texts:
        plain = re.sub(r"<[^>]*>", "", re.sub(r"\$\{[^}]*\}", "value", text))
        yield from ((1, fault) for fault in (*banned(plain), *find_long(plain)))


def list_yaml_texts(value: object) -> Iterator[str]:
    """Yield the texts of a YAML file's values."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from list_yaml_texts(part)
    elif isinstance(value, str):
        yield value


def list_files(*patterns: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every file that matches a pattern and is written by hand."""
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            if not SKIPPED.fullmatch(name := str(path.relative_to(ROOT))):
                yield name, path.read_text()


def file_faults(name: str, text: str) -> Faults:
    """Yield the line and the fault of everything in a file that breaks a rule for its kind."""
    match Path(name).suffix:
        case ".md":
            yield from page_faults(text)
        case ".py":
            tree = ast.parse(text)
            yield from (*(test_faults(tree) if name.startswith("tests/") else code_faults(tree)), *name_faults(tree))
            yield from comment_faults(text)
        case ".js":
            yield from comment_faults(text, "//")
            yield from text_faults(re.findall(r"[\"`]([^\"`\n]*)[\"`]", text))
        case ".html":
            yield from text_faults(
                re.split(r"</?(?:p|li|h\d|div|label|button|a|summary|td|th|option|title)\b[^>]*>", text)
            )
        case ".yaml":
            yield from comment_faults(text)
            if "/presets/" not in name:  # whose texts are what other people's models were tried on
                yield from text_faults(list_yaml_texts(yaml.load(text, yaml.CSafeLoader)))
        case _:
            yield from comment_faults(text)


def faults() -> Iterator[str]:
    """Yield `FILE:LINE: fault` for everything that breaks a rule."""
    for name, text in list_files(*FILES):
        yield from (f"{name}:{line}: {fault}" for line, fault in sorted({*file_faults(name, text)}))


if __name__ == "__main__":
    found = list(faults())
    sys.stdout.write("\n".join(found) + f"\n{len(found)} faults\n" if found else "")
    sys.exit(bool(found))
