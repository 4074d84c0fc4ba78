"""The examples of docs/extending.md are short, use names that exist where the page says, and answer requests."""

import ast
import builtins
import re
from pathlib import Path

import pytest
from fastapi import APIRouter

from assay_service.api import answers, app, routes
from assay_service.api.body import StrictJsonRoute
from tests.service import test_api
from tests.service.conftest import tiny
from tests.service.test_api import run

__all__ = ["run", "tiny"]  # the fixtures

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
# A block has one part for each file, which begins with a comment of the file's path.
PARTS = [
    (path, code)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for path, code in re.findall(r"^# (\S+\.py)[^\n]*\n(.*?)(?=^# \S+\.py|\Z)", block, re.DOTALL | re.MULTILINE)
]


def test_examples_have_at_most_20_lines() -> None:
    """The lines of all blocks of a section together; blank lines do not count."""
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        code = "".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
        assert len([line for line in code.splitlines() if line.strip()]) <= 20, section.partition("\n")[0]


def used_names(code: str) -> set[str]:
    """The names that `code` reads and does not define."""
    # `...` in a table stands for the entries that are there already.
    whole = re.sub(r"(?<=,)\s*\.\.\.(?=\s*\})|^\s*\.\.\.$", "", code, flags=re.MULTILINE)
    nodes = list(ast.walk(ast.parse(whole)))
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    bound |= {a.asname or a.name for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    return read - bound - vars(builtins).keys()


def words_of(path: str) -> set[str]:
    """The words of the module at `path`, or of its siblings where the example is a new module."""
    file = ROOT / path
    files = [file] if file.exists() else sorted(file.parent.glob("*.py"))
    return {word for f in files for word in re.findall(r"\w+", f.read_text())}


@pytest.mark.parametrize(("path", "code"), PARTS, ids=[path for path, _ in PARTS])
def test_names_in_the_examples_exist(path: str, code: str) -> None:
    # The examples add these names themselves, or import them from transformers.
    added = (
        {"Starcoder2Config"}
        | set(re.findall(r"^(?:class|def) (\w+)", PAGE, re.MULTILINE))
        | {Path(p).stem for p, _ in PARTS}
    )
    assert not used_names(code) - words_of(path) - added


def test_the_endpoint_of_the_page_passes_the_test_of_the_page(
    run: test_api.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = dict(part for part in PARTS if "BestAnswer" in part[1])
    added = dict(vars(answers))
    exec(code["service/assay_service/api/answers.py"], added)
    monkeypatch.setattr(answers, "BestAnswer", added["BestAnswer"], raising=False)
    router = APIRouter(route_class=StrictJsonRoute)
    exec(code["service/assay_service/api/routes.py"], {**vars(routes), "router": router})
    router.include_router(routes.router)
    monkeypatch.setattr(app, "router", router)
    (test,) = re.findall(r"```python\n(def (test_the_best\w+).*?)```", PAGE, re.DOTALL)
    names = dict(vars(test_api))
    exec(test[0], names)
    names[test[1]](run)
