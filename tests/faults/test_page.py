"""The page names the test of every fault: each name exists, and no test of this folder is left out."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/faults.md").read_text()


def list_tests(file: Path) -> set[str]:
    """Tests of a file: functions, and state machines."""
    nodes = ast.parse(file.read_text()).body
    machines = {
        node.name
        for node in nodes
        if isinstance(node, ast.ClassDef) and "StateMachine" in str(node.bases and ast.unparse(node.bases[0]))
    }
    return machines | {
        node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def find_file(name: str) -> Path:
    return ROOT / "tests" / name if "/" in name else ROOT / "tests/faults" / name


def test_every_name_is_a_test_and_every_test_is_named() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE))
    assert len(named) > 30
    assert not [(file, test) for file, test in named if test not in list_tests(find_file(file))]
    own = {(path.name, test) for path in Path(__file__).parent.glob("test_*.py") for test in list_tests(path)}
    own -= {(Path(__file__).name, test) for test in list_tests(Path(__file__))}
    assert own <= named
