"""Token ids of a prompt and its completion get the score of their text, where the service knows the tokenizer."""

import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.compat.conftest import Serve

PROMPT = "<|im_start|>user\nWhat is hot?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def file(tiny: dict[str, Any]) -> Path:
    path: Path = tiny["root"] / "base" / "tokenizer.json"
    return path


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def encode(file: Path, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    return ids


def score(url: str, item: dict[str, Any], **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", json={"items": [item], **more})


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("The sun is hot.<|im_end|>", "stop"),
        (" The sun\nis hot.<|im_end|><|pad|><|pad|>", "stop"),
        ("The sun is", "length"),
        ("The sun is<|pad|>", "length"),
    ],
)
def test_ids_get_the_score_of_their_text(url: str, file: Path, completion: str, reason: str) -> None:
    ids = {"prompt_ids": encode(file, f"<|pad|><|bos|>{PROMPT}"), "completion_ids": encode(file, completion)}
    (row,) = score(url, ids, tokenizer_sha256=sha256(file)).json()["data"]
    text = completion.partition("<|")[0]
    item = {"prompt": "What is hot?", "completion": text, "finish_reason": reason}
    assert row == score(url, item).json()["data"][0]
    body = {"items": [ids], "tokenizer_sha256": sha256(file), "model": "pref"}
    shown = httpx.post(f"{url}/v1/render", json=body).json()["data"][0]["signals"]["pref"]
    assert shown["text"] == f"{PROMPT}{text}" + ("<|im_end|>\n" if reason == "stop" else "")


def test_info_lists_the_known_tokenizers(serve: Serve, url: str, file: Path, tiny: dict[str, Any]) -> None:
    encoder = tiny["root"] / "enc" / "tokenizer.json"
    known = httpx.get(f"{url}/info").json()["tokenizers"]
    assert known == {sha256(file): ["signals.pref", "signals.abs"], sha256(encoder): ["signals.enc"]}
    policy = serve(wires={"slime": {"policy": str(file.parent)}}).url
    known = httpx.get(f"{policy}/info").json()["tokenizers"]
    assert known[sha256(file)] == ["compat.wires.slime.policy", "signals.pref", "signals.abs"]


def test_ids_of_an_unknown_tokenizer_and_ids_without_a_hash_are_refused(url: str, file: Path) -> None:
    ids = {"prompt_ids": encode(file, PROMPT), "completion_ids": [5]}
    answer = score(url, ids, tokenizer_sha256="0" * 64)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_request", "tokenizer_sha256")
    assert "/info lists them" in error["message"]
    answer = score(url, ids)
    assert answer.status_code == 422
    assert "sha256sum tokenizer.json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"completion": "x"},
        {"prompt": "x", "completion": "x"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"finish_reason": "stop"},
        {"completion_ids": None},
        {"completion_ids": [-1]},
        {"completion_ids": ["5"]},
        {"completion_ids": [5.0]},
    ],
)
def test_an_item_has_one_form(url: str, file: Path, change: dict[str, Any]) -> None:
    ids = {"prompt_ids": encode(file, PROMPT), "completion_ids": [5]}
    answer = score(url, ids | change, tokenizer_sha256=sha256(file))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


def test_a_wrong_id_is_the_error_of_its_item(url: str, file: Path) -> None:
    good = {"prompt_ids": encode(file, PROMPT), "completion_ids": encode(file, "Ice.<|im_end|>")}
    bad = [
        good | {"completion_ids": [10**6]},
        good | {"completion_ids": [2**70]},
        good | {"prompt_ids": [10**6]},
        good | {"prompt_ids": encode(file, "What is hot?")},
        good | {"prompt_ids": []},
    ]
    body = {"items": [good, *bad], "tokenizer_sha256": sha256(file)}
    rows = httpx.post(f"{url}/v1/score", json=body).json()["data"]
    assert "score" in rows[0]
    errors = [(row["error"]["code"], row["error"]["param"]) for row in rows[1:]]
    assert errors == [
        ("token_out_of_range", "completion_ids"),
        ("token_out_of_range", "completion_ids"),
        ("token_out_of_range", "prompt_ids"),
        ("unreadable_text", None),
        ("unreadable_text", None),
    ]


def test_ids_that_end_within_a_character_are_the_error_of_their_item(url: str, file: Path) -> None:
    cut = encode(file, "The sun is hot, mon caf\u00e9 \u6f22")[:-1]
    (row,) = score(
        url, {"prompt_ids": encode(file, PROMPT), "completion_ids": cut}, tokenizer_sha256=sha256(file)
    ).json()["data"]
    assert (row["error"]["code"], row["error"]["message"]) == (
        "unreadable_text",
        "the ids begin or end within a character; send text",
    )
    whole = {"prompt_ids": encode(file, PROMPT), "completion_ids": encode(file, "What is \ufffd?<|im_end|>")}
    assert "score" in score(url, whole, tokenizer_sha256=sha256(file)).json()["data"][0]
