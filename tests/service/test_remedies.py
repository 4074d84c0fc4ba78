"""Every message that refuses a start says what to do next; found in the source, so that a new message counts, too."""

from pathlib import Path

import pytest

import assay_service
from tests.remedies import Package

ROOT = Path(assay_service.__file__).parent
# Files whose ValueErrors are messages to users: pydantic puts them into start errors.
SETTINGS = ("compat_settings.py", "preset.py", "preset_keys.py", "settings.py", "signal_settings.py", "validation.py")
# Places of messages whose remedy the program cannot see, with the reason.
EXCEPTIONS = {
    "settings.py": "it joins the messages of find_wrong_names, which tests/service/test_configuration.py reads",
}


def test_every_start_error_has_a_remedy() -> None:
    found = list(Package(ROOT).find_without_remedy("StartError"))
    assert found == []


def test_every_message_of_settings_has_a_remedy() -> None:
    package = Package(ROOT)
    found = [m.place.partition(":")[0] for file in SETTINGS for m in package.find_without_remedy("ValueError", file)]
    assert found == list(EXCEPTIONS)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('raise StartError(f"{path}: is missing")', 1),
        ('raise StartError(f"{path}: declares no head")', 1),
        ('raise StartError(f"{path}: is missing; download it again")', 0),
        ('raise StartError(f"{path}: is missing{explain(path)}")\n\ndef explain(path):\n    return ""', 1),
        ('raise StartError(f"{path}: is missing{explain(path)}")\n\ndef explain(path):\n    return "; remove it"', 0),
        ('hint = "; remove it" if path else ""\nraise StartError(f"{path}: is missing{hint}")', 1),
        ('raise StartError("one: remove it", f"{path}: is missing")', 1),
    ],
)
def test_a_message_without_a_remedy_is_found(source: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(source)
    assert len(list(Package(tmp_path).find_without_remedy("StartError"))) == count
