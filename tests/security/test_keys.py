"""The key file: what is in it, what is refused, and how it changes."""

import hashlib
import hmac
import json
import logging
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from assay_service import cli_keys, keys
from assay_service.api.key_store import KeyStore
from assay_service.errors import StartError


def run(*words: str) -> Any:
    return CliRunner().invoke(cli_keys.app, list(words))


def test_add_prints_the_key_once_and_stores_only_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    done = run("add", "ppo", "--scope", "score", "--scope", "metrics", "--file", str(file))
    assert done.exit_code == 0
    key = done.stdout.strip()
    assert key.startswith("assay_")
    assert len(key) == len("assay_") + 43  # 256 random bits
    text = file.read_text()
    assert key.removeprefix("assay_") not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    raw = yaml.safe_load(text)
    (entry,) = raw["keys"]
    expected = hmac.new(bytes.fromhex(raw["salt"]), key.encode(), hashlib.sha256).hexdigest()
    assert entry == {"name": "ppo", "scopes": ["score", "metrics"], "hmac_sha256": expected}


def test_keys_are_listed_without_hashes_and_removed_by_name(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    for name in ("a", "b"):
        keys.add_key(file, name, ("score",))
    assert run("list", "--file", str(file)).stdout.split() == ["a", "score", "b", "score"]
    assert run("remove", "a", "--file", str(file)).exit_code == 0
    assert [key.name for key in keys.read_key_file(file).keys] == ["b"]
    wrong = run("remove", "a", "--file", str(file))
    assert wrong.exit_code == 2
    assert wrong.stderr.endswith("has no key named 'a'; give one of its names: b\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("b", "--scope", "read"), "scopes[0]: must be one of score, metrics, admin"),
        (("a b", "--scope", "score"), "name: must be 1 to 64 letters"),
        (("a", "--scope", "score"), "has a key named 'a'; remove that key first"),
    ],
)
def test_wrong_names_and_scopes_are_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    file = tmp_path / "keys.yaml"
    keys.add_key(file, "a", ("score",))
    before = file.read_text()
    done = run("add", *words, "--file", str(file))
    assert done.exit_code == 2
    assert message in done.stderr
    assert file.read_text() == before


def entry(name: str = "a", **other: Any) -> dict[str, Any]:
    return {"name": name, "scopes": ["score"], "hmac_sha256": "5e" * 32, **other}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "must be a mapping of keys to values"),
        ({"keys": []}, "salt: is required"),
        ({"salt": "ab" * 32}, "keys: is required"),
        ({"salt": "ab", "keys": []}, "salt: must be 64 hexadecimal digits"),
        ({"salt": "ab" * 32, "keys": [entry(), entry()]}, "the name 'a' occurs twice"),
        ({"salt": "ab" * 32, "keys": [entry(scopes=[])]}, "keys[0].scopes: must not be empty"),
        ({"salt": "ab" * 32, "keys": [entry(scope="score")]}, "keys[0].scope: unknown key"),
        ({"salt": "ab" * 32, "keys": [entry(hmac_sha256="Marker-of-a-key")]}, "keys[0].hmac_sha256: must be 64"),
    ],
)
def test_a_wrong_file_is_refused_by_key_and_its_values_are_not_repeated(tmp_path: Path, raw: Any, message: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(raw))  # YAML reads JSON
    with pytest.raises(StartError) as caught:
        keys.read_key_file(file)
    assert message in caught.value.message
    assert "Marker" not in caught.value.message


def test_every_key_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.yaml"
    first, second = (keys.add_key(file, name, ("score",)) for name in ("a", "b"))
    read = keys.read_key_file(file)
    compared: list[str] = []
    compare = hmac.compare_digest

    def record(sent: str, known: str) -> bool:
        compared.append(known)
        return compare(sent, known)

    monkeypatch.setattr(hmac, "compare_digest", record)
    for sent, name in ((first, "a"), (second, "b"), (first[:-1], None), (first + "x", None), ("", None)):
        compared.clear()
        found = read.find(sent.encode())
        assert (None if found is None else found.name) == name
        assert compared == [key.hmac_sha256 for key in read.keys]
    compared.clear()
    assert read.find(b"x" * 10_000_000) is None  # not even hashed
    assert compared == []


def test_a_changed_file_is_read_again_and_a_broken_one_keeps_the_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "assay")
    file = tmp_path / "keys.yaml"
    old = keys.add_key(file, "old", ("score",)).encode()
    store = KeyStore(file)
    new = keys.add_key(file, "new", ("score",)).encode()
    assert store.find(new) is None
    store.reload()
    assert store.find(new) is not None
    assert store.find(old) is not None
    for broken in ("keys: [", "salt: 1", None):
        file.unlink(missing_ok=True)
        if broken is not None:
            file.write_text(broken)
        caplog.clear()
        store.reload()
        (line,) = caplog.records
        assert line.levelname == "ERROR"
        assert "the keys are unchanged, because their file is wrong" in line.getMessage()
        assert store.find(new) is not None
    file.write_text(f"salt: {'ab' * 32}\nkeys: []\n")  # nobody, which is what it says
    store.reload()
    assert store.find(new) is None


def test_a_running_service_follows_its_file(guarded: Any) -> None:
    body = {"items": [{"prompt": "p", "completion": "c"}]}
    late = keys.add_key(guarded.file, "late", ("score",))
    until_s = time.monotonic() + 20
    while guarded.ask("/v1/score", late, "POST", json=body).status_code == 401:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    keys.remove_key(guarded.file, "late")
    while guarded.ask("/v1/score", late, "POST", json=body).status_code == 200:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert guarded.ask("/v1/score", "score", "POST", json=body).status_code == 200
