"""Fetch the chat templates of published models that TRL carries, so that tests can render the real ones."""

import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

from tests.real_tokenizers import CACHE, unavailable

TRL = "1.16.0"  # its chat_templates are copies of models' own: https://github.com/huggingface/trl


@lru_cache
def trl_templates() -> dict[str, str]:
    """Return the templates of TRL by name, without those that it changed for training; fetch them once.

    Where they cannot be fetched, the calling test is skipped; with `CI=true` in the environment it fails instead.
    """
    directory = CACHE / f"trl-{TRL}"
    if not directory.is_dir():
        try:
            _fetch(directory)
        except subprocess.SubprocessError as error:
            unavailable(f"pip cannot fetch trl=={TRL}: {error}")
    files = sorted(directory.glob("*.jinja"))
    return {path.stem: path.read_text(encoding="utf-8") for path in files if not path.stem.endswith("_training")}


def _fetch(directory: Path) -> None:
    """Download the wheel with pip, which runs none of its code, and keep its templates."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*download, "--dest", folder, f"trl=={TRL}"], check=True, capture_output=True, timeout=300)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder, [name for name in packed.namelist() if name.startswith("trl/chat_templates/")])
        # Another process may fetch the same: the first to rename wins.
        try:
            (Path(folder) / "trl" / "chat_templates").rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
