"""vLLM and Assay serve one checkpoint: the same requests give the same JSON shapes, and the same logits."""

import base64
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from assay_service import create_app, read_settings
from tests import checkpoints

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]  # vLLM takes minutes to start on two cores

# For logits below one; in bf16 the difference grows with the logits.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
START_S = 1200.0

# vLLM names the two turns of `/score` and `/rerank` query and document; with this template they are Assay's.
TEMPLATE = (
    "{%- for m in messages -%}"
    "<|im_start|>{{ {'query': 'user', 'document': 'assistant'}.get(m['role'], m['role']) }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor -%}"
)
PROMPT = "How do I bake bread?"
COMPLETIONS = [
    "Mix flour, water, salt and yeast, and wait.",
    "No.",
    "Über Brot 🍞 weiß ich nichts.",
    "The quick brown fox.",
]
CHATS = [
    *([{"role": "user", "content": PROMPT}, {"role": "assistant", "content": text}] for text in COMPLETIONS),
    [
        {"role": "system", "content": "The lazy dog."},
        {"role": "user", "content": "0 1 2 3"},
        {"role": "assistant", "content": "4 5"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "6 7 8 9"},
    ],
]
FAST = checkpoints.decoder_tokenizer()
TEXTS = [str(FAST.apply_chat_template(chat, tokenize=False)) for chat in CHATS]
IDS = [FAST.encode(text, add_special_tokens=False) for text in TEXTS]

_log = logging.getLogger(__name__)

Post = Callable[[str, dict[str, Any]], Any]  # a function that posts a body to a path, and returns the response


@pytest.fixture(scope="module", params=sorted(TOLERANCE))
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Post, Post]]:
    """The dtype, and one function for each server that posts a body to a path."""
    root = tmp_path_factory.mktemp("rm")
    # vLLM's attention for CPUs has a least head size, so the model is wider than the other tiny ones.
    model = checkpoints.classifier("llama", FAST, hidden_size=256, intermediate_size=512, initializer_range=0.02)
    checkpoints.save(root / "rm", model, FAST)
    (root / "score.jinja").write_text(TEMPLATE)
    (root / "service.yaml").write_text(
        f"signals: {{rm: {{base: rm, kind: preference, eos: template, unfinished: score, dtype: {request.param}}}}}"
    )
    url, process = _start_vllm(root, request.param)
    try:
        with httpx.Client(base_url=url, timeout=300) as vllm:
            _wait(vllm, process, root / "vllm.log")
            with TestClient(create_app(read_settings(root / "service.yaml"))) as assay:
                yield (
                    request.param,
                    lambda path, body: vllm.post(path, json=body),
                    lambda path, body: assay.post(f"/compat/vllm{path}", json=body),
                )
    finally:
        process.terminate()
        process.wait(60)


def _start_vllm(root: Path, dtype: str) -> tuple[str, "subprocess.Popen[bytes]"]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--runner", "pooling", "--enforce-eager"]
    command += ["--model", str(root / "rm"), "--served-model-name", "rm", "--chat-template", str(root / "score.jinja")]
    command += ["--dtype", dtype, "--max-model-len", "256", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (root / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    return f"http://127.0.0.1:{port}", process


def _wait(vllm: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if vllm.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError(f"vLLM did not start within {START_S:.0f} s: {log.read_text()[-2000:]}")


def _describe(value: Any) -> Any:
    """The shape of a JSON value: keys and types, recursively, without numbers and texts."""
    if isinstance(value, dict):
        return {key: _describe(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_describe(inner) for inner in value]
    return type(value)


def _read_values(body: dict[str, Any]) -> list[float]:
    """The numbers of any endpoint's answer, in the order of the request's items."""
    rows = sorted(body.get("data") or body["results"], key=lambda row: row["index"])
    values = [row.get("probs") or row.get("data") or row.get("score", row.get("relevance_score")) for row in rows]
    decoded = [struct.unpack("<f", base64.b64decode(v)) if isinstance(v, str) else v for v in values]
    return [v if isinstance(v, float) else v[0] for v in decoded]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"input": TEXTS}),
        ("/classify", {"input": TEXTS[0]}),
        ("/classify", {"input": IDS}),
        ("/classify", {"messages": CHATS[-1], "user": "a", "priority": 0, "add_generation_prompt": False}),
        ("/pooling", {"input": TEXTS, "task": "classify"}),
        ("/pooling", {"input": IDS[1], "encoding_format": "base64", "cache_salt": "salt"}),
        ("/pooling", {"messages": CHATS[0]}),
        ("/score", {"queries": PROMPT, "documents": COMPLETIONS}),
        ("/score", {"queries": [PROMPT, "and?", "0 1", "who"], "items": COMPLETIONS}),
        ("/v1/score", {"text_1": PROMPT, "text_2": COMPLETIONS[1]}),
        ("/score", {"data_1": [PROMPT], "data_2": COMPLETIONS[:2]}),
        ("/rerank", {"query": PROMPT, "documents": COMPLETIONS}),
        ("/v1/rerank", {"query": PROMPT, "documents": COMPLETIONS, "top_n": 2}),
        ("/v2/rerank", {"query": PROMPT, "documents": COMPLETIONS[0]}),
    ],
)
def test_answers_are_the_same(servers: tuple[str, Post, Post], path: str, body: dict[str, Any], raw: bool) -> None:
    dtype, ask_vllm, ask_assay = servers
    body = {"model": "rm", **body, "use_activation": not raw}
    theirs, ours = ask_vllm(path, body), ask_assay(path, body)
    assert (theirs.status_code, ours.status_code) == (200, 200), (theirs.text, ours.text)
    theirs, ours = theirs.json(), ours.json()
    assert _describe(ours) == _describe(theirs)
    assert ours["id"].split("-")[0] == theirs["id"].split("-")[0]
    for key in ("object", "model", "usage"):
        assert ours.get(key) == theirs.get(key)
    if "results" in theirs:
        assert [row["index"] for row in ours["results"]] == [row["index"] for row in theirs["results"]]
        assert [row["document"] for row in ours["results"]] == [row["document"] for row in theirs["results"]]
    else:
        constant = ("index", "object", "label", "num_classes")
        assert [[row.get(k) for k in constant] for row in ours["data"]] == [
            [row.get(k) for k in constant] for row in theirs["data"]
        ]
    difference = max(abs(a - b) for a, b in zip(_read_values(ours), _read_values(theirs), strict=True))
    largest = max(map(abs, _read_values(theirs)))
    _log.info("%s %s %s: differs by %.2g of %.2g", dtype, path, "logit" if raw else "sigmoid", difference, largest)
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/classify", {"model": "/models/rm", "input": TEXTS[0]}, 404),
        ("/classify", {"input": TEXTS[0], "normalize": True}, 400),
        ("/classify", {}, 400),
        ("/classify", {"input": []}, 400),
        ("/classify", {"input": 5}, 400),
        ("/classify", {"input": [IDS[0], [99999]]}, 400),
        ("/classify", {"input": f"{TEXTS[0]}{'a ' * 1000}"}, 400),
        ("/pooling", {"input": TEXTS[0], "task": "embed"}, 400),
        ("/pooling", {"input": TEXTS[0], "dimensions": 3}, 400),
        ("/score", {"queries": ["a", "b", "c"], "documents": ["d", "e"]}, 400),
        ("/rerank", {"query": "a", "documents": []}, 400),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, 400),
    ],
)
def test_errors_have_the_same_shape(
    servers: tuple[str, Post, Post], path: str, body: dict[str, Any], status: int
) -> None:
    _, ask_vllm, ask_assay = servers
    theirs, ours = ask_vllm(path, body), ask_assay(path, body)
    assert (theirs.status_code, ours.status_code) == (status, status), (theirs.text, ours.text)
    theirs, ours = theirs.json()["error"], ours.json()["error"]
    assert sorted(ours) == sorted(theirs)
    assert ours["code"] == theirs["code"] == status
    assert ours["type"].replace(" ", "") in (theirs["type"].replace(" ", ""), f"{theirs['type'].replace(' ', '')}Error")


def test_a_former_name_of_the_activation_is_read_here_and_ignored_by_vllm(servers: tuple[str, Post, Post]) -> None:
    """vLLM answers 200 with a sigmoid; whoever sent `activation: false` trains on squashed rewards."""
    dtype, ask_vllm, ask_assay = servers
    asked = {"model": "rm", "input": TEXTS, "activation": False}
    logits = _read_values(ask_vllm("/classify", {"input": TEXTS, "use_activation": False}).json())
    assert all(0 < value < 1 for value in _read_values(ask_vllm("/classify", asked).json()))
    assert _read_values(ask_assay("/classify", asked).json()) == pytest.approx(logits, abs=TOLERANCE[dtype])
