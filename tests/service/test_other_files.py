"""A checkpoint cannot name other files than those that are checked and hashed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from assay_service.errors import StartError
from assay_service.scoring.files import read_config


@pytest.mark.parametrize("key", ["transformers_weights", "configuration_files"])
def test_a_key_that_names_other_files_is_refused(tiny: dict[str, Any], tmp_path: Path, key: str) -> None:
    directory = tmp_path / "base"
    shutil.copytree(tiny["root"] / "base", directory)
    config = directory / "config.json"
    assert read_config(directory)
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: "other"}))
    with pytest.raises(StartError, match=f"{key} names other files"):
        read_config(directory)
