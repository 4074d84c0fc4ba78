"""The tree, its page, and the budgets of `CONTRIBUTING.md`."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("service/assay_service", "training/assay_training", "clients/assay_client")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TOP_LEVEL = {
    "service",
    "training",
    "clients",
    "pyproject.toml",
    "Dockerfile",
    "helm",
    "tests",
    "docs",
    "benchmarks",
    "examples",
    "findings",
}
TOP_LEVEL |= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt"}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def functions() -> list[tuple[str, int]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (f"{path}:{node.name}", body_lines(node))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    ]


def test_modules_and_functions_are_small() -> None:
    assert not [(str(p), n) for p in MODULES if (n := len(p.read_text().splitlines())) > 300]
    lengths = functions()
    assert not [entry for entry in lengths if entry[1] >= 50]
    assert sorted(n for _, n in lengths)[int(len(lengths) * 0.9)] <= 30


def test_structure_page_names_every_folder_once_and_no_file_that_is_not_there() -> None:
    page = (ROOT / "docs/structure.md").read_text()
    for package in PACKAGES:
        section = re.search(rf"### {package}\n(.*?)(?:\n### |\Z)", page, flags=re.S)
        assert section
        folders = re.findall(r"^- `([^`]+)`:", section[1], flags=re.M)
        there = [
            f"{path.relative_to(ROOT / package)}/".removesuffix("./") or "."
            for path in [ROOT / package, *(ROOT / package).rglob("*")]
            if path.is_dir() and any(file.is_file() and file.suffix != ".pyc" for file in path.iterdir())
        ]
        assert sorted(folders) == sorted(
            folder for folder in there if not folder.startswith("embedded/") or folder == "embedded/"
        )
        for part in re.split(r"^- ", section[1], flags=re.M)[1:]:
            folder = ROOT / package / part.split("`")[1]
            files = re.findall(r"`(\w+\.py)`", part)
            assert not [file for file in files if not (folder / file).is_file()]
            assert len(files) == len(set(files))


def test_package_inits_are_empty_but_for_the_public_surfaces() -> None:
    """`assay_client` and `assay_service` export their public names; tests hold each list."""
    filled = [path for path in MODULES if path.name == "__init__.py" and path.read_text()]
    assert filled == [ROOT / "service/assay_service/__init__.py", ROOT / "clients/assay_client/__init__.py"]


def test_top_level_is_the_prescribed_one() -> None:
    there = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.name != "runs"}
    assert there <= TOP_LEVEL


def test_only_the_place_of_the_cache_is_read_from_the_environment() -> None:
    """It is written to for libraries that have no other switch."""
    readers = [p for p in MODULES if re.search(r"os\.environ(?!\[\S+\] = )|os\.getenv", p.read_text())]
    assert [path.name for path in readers] == ["cache.py"]


def test_tests_that_need_vllm_are_in_the_files_that_its_environment_runs() -> None:
    """That environment has none of the SDKs which other test files import."""
    marked = {path.name for path in (ROOT / "tests").rglob("*.py") if re.search(r"mark\.vllm\b", path.read_text())}
    assert marked == {path.name for path in (ROOT / "tests").glob("*/test_*_vllm.py")}
    assert "-m vllm tests/*/test_*_vllm.py" in (ROOT / "Makefile").read_text()


def test_no_committed_file_is_a_link() -> None:
    """A link leads to a place on the machine of whoever made it; `.gitignore` must name folders that may be links."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not [line for line in listed.splitlines() if line.startswith("120000")]
