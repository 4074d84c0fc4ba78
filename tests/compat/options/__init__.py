"""The options of other servers at one version each, and the tables of the docs that map them.

`NAME.tsv` has one option per line: its concern, and its names. `extract.py` wrote those of Python packages.
`python -m tests.compat.options` prints the tables of docs/compat-options.md.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = Path(__file__).parents[3] / "docs" / "compat-servers.md"
# The file of each server, and the head of its column in docs/compat-servers.md.
COLUMNS = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "infinity": "infinity",
    "tei": "TEI",
    "openrlhf": "OpenRLHF's `serve_rm`",
}
MOST_OPTIONS = 20  # in one cell of a table

Option = tuple[str, list[str]]  # concern, names


def read_title(server: str) -> str:
    """Return the name and version of a server."""
    return (FOLDER / f"{server}.tsv").read_text().splitlines()[0].removeprefix("# ")


def read_options(server: str) -> list[Option]:
    """Return the options of a server with their concerns."""
    lines = (FOLDER / f"{server}.tsv").read_text().splitlines()[1:]
    return [(concern, names.split()) for concern, names in (line.split("\t") for line in lines)]


def find_mapped(server: str) -> set[str]:
    """Return the options that have a row in docs/compat-servers.md."""
    found: set[str] = set()
    column = None
    for line in PAGE.read_text().split("\n## Fields of requests")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("| "):
            column = column if line.startswith("|") else None  # a table ends
        elif cells[-1] == "Assay":
            column = cells.index(COLUMNS[server]) if COLUMNS[server] in cells else None
        elif column is not None:
            found |= set(re.findall(r"--[\w.-]+", cells[column]))
    return found


def build_tables() -> Iterator[str]:
    """Yield the lines of docs/compat-options.md after its introduction."""
    for server in COLUMNS:
        mapped = find_mapped(server)
        rest = [(concern, names[0]) for concern, names in read_options(server) if not mapped & set(names)]
        yield from (f"## {read_title(server)}", "", "| concern | options |", "|---|---|")
        for concern, group in itertools.groupby(sorted(rest), key=lambda option: option[0]):
            names = [f"`{name}`" for _, name in group]
            for start in range(0, len(names), MOST_OPTIONS):
                yield f"| {concern} | {', '.join(names[start : start + MOST_OPTIONS])} |"
        yield ""
