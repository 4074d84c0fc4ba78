"""The table of traps in `docs/traps.md`: no number is missing, and each has tests that exist and run."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
CELLS = re.compile(r"\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|")
DESIGNED = 30  # numbers of the design's own list; later ones were found since
UNUSUAL = {"slow", "gpu", "vllm", "chart"}  # `make test` runs no test with one of these marks
PACKAGES = ("service/assay_service", "training/assay_training", "clients/assay_client", "tests")


def read_table() -> list[tuple[int, str, str, list[str]]]:
    """Return number, fault, what Assay does, and tests of every row below the table's head."""
    lines = [line for line in (ROOT / "docs/traps.md").read_text().splitlines() if line.startswith("|")]
    rows = [CELLS.fullmatch(line) for line in lines[2:]]
    assert all(rows), [line for line, row in zip(lines[2:], rows, strict=True) if row is None]
    return [(int(row[1]), row[2], row[3], re.findall(r"`([^`]+)`", row[4])) for row in rows if row is not None]


@cache
def read_file(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def list_marks(function: ast.FunctionDef, module: ast.Module) -> set[str]:
    """Return the names of pytest's marks on a test or on its whole file, without the arguments."""
    marks: list[ast.expr] = list(function.decorator_list)
    for node in module.body:
        if isinstance(node, ast.Assign) and "pytestmark" in [n.id for n in node.targets if isinstance(n, ast.Name)]:
            marks += node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
    return {name.removeprefix("pytest.mark.").partition("(")[0] for name in map(ast.unparse, marks)}


def find_fault(test: str) -> str | None:
    """Return why a test does not count: it is not there, or is skipped or expected to fail whatever the machine is."""
    file, _, name = test.partition("::")
    if not (TESTS / file).is_file():
        return "no such file"
    module = read_file(TESTS / file)
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if len(functions) != 1 or not name.startswith("test_"):
        return "no such test"
    (function,) = functions
    if marks := list_marks(function, module) & {"skip", "xfail"}:
        return f"marked as {' and '.join(marks)}"
    for node in function.body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("pytest.skip", "pytest.xfail"):
            return "always skipped"
    return None if any(isinstance(node, ast.Assert | ast.With | ast.Call) for node in ast.walk(function)) else "empty"


def test_no_number_is_missing_or_used_twice() -> None:
    numbers = [number for number, *_ in read_table()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= DESIGNED


@pytest.mark.parametrize("row", read_table(), ids=lambda row: str(row[0]))
def test_every_trap_has_tests_that_exist_and_run(row: tuple[int, str, str, list[str]]) -> None:
    _, fault, here, tests = row
    assert fault.strip()
    assert here.strip()
    assert tests
    assert len(tests) == len(set(tests))
    assert not [(test, reason) for test in tests if (reason := find_fault(test)) is not None]
    usual = [test for test in tests if not list_marks_of(test) & UNUSUAL]
    assert usual, "`make test` runs none of them"


def list_marks_of(test: str) -> set[str]:
    file, _, name = test.partition("::")
    module = read_file(TESTS / file)
    (function,) = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return list_marks(function, module)


def test_numbers_in_comments_are_in_the_table() -> None:
    known = {number for number, *_ in read_table()}
    cited = re.compile(r"scoring-traps ((?:\d+(?:-|, | and | to )?)+)")
    found = {
        int(number)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for text in cited.findall(path.read_text())
        for number in re.findall(r"\d+", text)
    }
    assert len(found) >= 10
    assert found <= known


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def test_a() -> None:\n    assert 1\n", None),
        ("@pytest.mark.skipif(sys.platform == 'win32', reason='')\ndef test_a() -> None:\n    assert 1\n", None),
        ("def test_b() -> None:\n    assert 1\n", "no such test"),
        ("@pytest.mark.skip(reason='later')\ndef test_a() -> None:\n    assert 1\n", "marked as skip"),
        ("pytestmark = [pytest.mark.skip]\n\ndef test_a() -> None:\n    assert 1\n", "marked as skip"),
        ("@pytest.mark.xfail\ndef test_a() -> None:\n    assert 1\n", "marked as xfail"),
        ("def test_a() -> None:\n    pytest.skip('later')\n    assert 1\n", "always skipped"),
        ("def test_a() -> None:\n    pass\n", "empty"),
    ],
)
def test_a_test_that_does_not_run_is_found(body: str, reason: str | None, tmp_path: Path) -> None:
    path = tmp_path / "test_file.py"
    path.write_text(body)
    assert find_fault(f"{path}::test_a") == reason
