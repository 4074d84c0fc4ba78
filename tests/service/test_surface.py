"""What `assay_service` exports: the names that users write, and nothing heavy before they are used."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import assay_service

NAMES = ["EMBEDDED", "Settings", "StartError", "__version__", "create_app", "read_settings"]


def test_the_public_names_are_these() -> None:
    assert assay_service.__all__ == NAMES
    assert set(NAMES) <= set(dir(assay_service))
    exported: dict[str, object] = {}
    exec("from assay_service import *", exported)
    assert set(NAMES) <= set(exported)


def test_version_is_the_distributions() -> None:
    assert assay_service.__version__ == version("assay-rewards")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'assay_service' has no attribute 'Nope'"):
        assay_service.Nope  # noqa: B018


def test_settings_are_read_without_torch() -> None:
    code = """
import json, sys
import assay_service
first = sorted({"torch", "fastapi", "pydantic"} & sys.modules.keys())
settings = assay_service.read_settings(assay_service.EMBEDDED)
print(json.dumps([first, sorted(settings.signals), "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], ["absolute", "preference"], False]
