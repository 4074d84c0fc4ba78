"""The committed pages of experiments are those that the programs write from the committed results."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    "assay_experiments.page": ROOT / "docs" / "experiments.md",
    "assay_experiments.label_free_card": ROOT / "service" / "assay_service" / "embedded" / "LABEL_FREE_CARD.md",
}


@pytest.mark.parametrize("module", PAGES)
def test_a_page_is_what_its_program_writes(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == PAGES[module].read_text(), f"run: python -m {module} > {PAGES[module].relative_to(ROOT)}"
