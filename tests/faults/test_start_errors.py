"""Every kind of wrong configuration ends the command with code 2 and one message, without a stack trace."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from assay_service.keys import add_key
from tests.faults.service import ASSAY, SIGNAL, make_config

pytestmark = pytest.mark.slow


def write(text: str) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        (root / "service.yaml").write_text(text)
        return ["--config", str(root / "service.yaml")]

    return make


def make_with(*options: str) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        return ["--config", str(make_config(root, {})), *options]

    return make


def make_with_wrong_key_file(root: Path) -> list[str]:
    add_key(root / "keys.yaml", "a", ("score",))
    (root / "keys.yaml").write_text("keys: 3\n")
    return make_with("--keys", str(root / "keys.yaml"))(root)


KEYS = ", ".join(f"{name}: {value}" for name, value in SIGNAL.items())
KINDS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no file": (lambda root: ["--config", str(root / "none.yaml")], "none.yaml"),
    "a directory": (lambda root: ["--config", str(root)], ""),
    "not YAML": (write("signals: {a: ["), "service.yaml"),
    "not UTF-8": (lambda root: write_bytes(root, b"signals: \xff"), "service.yaml"),
    "an empty file": (write(""), "signals"),
    "a key twice": (write(f"signals: {{s: {{base: a, {KEYS}}}}}\nsignals: {{}}\n"), "signals"),
    "an unknown key": (write(f"signals: {{s: {{base: a, {KEYS}}}}}\nlimit: {{}}\n"), "limit"),
    "a wrong type": (write(f"signals: {{s: {{base: a, {KEYS}}}}}\nlimits: {{max_items: many}}\n"), "limits.max_items"),
    "a value out of range": (write(f"signals: {{s: {{base: a, {KEYS}}}}}\nlimits: {{max_items: 0}}\n"), "max_items"),
    "no checkpoint": (write(f"signals: {{s: {{base: nowhere, {KEYS}}}}}\n"), "nowhere"),
    "an unknown default": (write(f"signals: {{s: {{base: a, {KEYS}}}}}\ndefault: t\n"), "default"),
    "a host that is none": (make_with("--host", "no-such-host.invalid"), "--host no-such-host.invalid"),
    "a key file that is wrong": (make_with_wrong_key_file, "keys"),
    "a certificate that is not there": (
        make_with("--tls-certificate", "/nowhere.crt", "--tls-key", "/nowhere.key"),
        "/nowhere.crt",
    ),
    "an open address without keys": (make_with("--host", "0.0.0.0"), "--keys"),
}


def write_bytes(root: Path, content: bytes) -> list[str]:
    (root / "service.yaml").write_bytes(content)
    return ["--config", str(root / "service.yaml")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_configuration_is_one_message(kind: str, tmp_path: Path) -> None:
    make, named = KINDS[kind]
    command = [str(ASSAY), "serve", "--port", "0", *make(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"NO_COLOR": "1"}, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    shown = re.sub(r"[\s│]", "", done.stderr)  # typer breaks long lines inside its frame
    assert named.replace(" ", "") in shown
    assert len([line for line in done.stderr.splitlines() if line.startswith("assay serve: ")]) <= 1
