"""Requests of real clients, recorded by a socket server and sent again byte for byte.

`recorded/NAME-VERSION.http` holds the bytes of one request. Each came from the client's own function in a package of
that version (slime: of that commit), with the addresses of the socket server: `SingleTurnAgentExecutor.execute` of
OpenRLHF, `get_rewards_from_server` of LLaMA-Factory, `async_rm` of slime for both forms of a prompt,
`InferClient.infer_async` of ms-swift, `JinaRerank.compress_documents` of langchain-community, and
`JinaRerank.postprocess_nodes` of llama-index-postprocessor-jinaai-rerank. Packages that these functions do not use were
left out: vLLM, ray, and the other rewards of slime.
"""

import http.client
import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from assay_service.scoring.blend import compute_probability
from tests.compat.conftest import RECORDED, Serve, read_body

ITEM = {"prompt": "What is hot?", "completion": "The sun is hot."}
ICE = {**ITEM, "completion": "Ice."}
RANKED = [
    {"prompt": "Name a prime.", "completion": text} for text in read_body("langchain-community-0.4.2")["documents"]
]


def read_ranks(answer: Any) -> list[float]:
    """The relevance of every document in the order of the request; the client asks for the best three."""
    rows = {row["index"]: row["relevance_score"] for row in answer["results"]}
    return [rows.get(index, 0.0) for index in range(len(RANKED))]


# What the client reads of the answer, and the items and the model whose native scores it must hold.
CLIENTS: dict[str, tuple[Callable[[Any], Any], list[dict[str, str]], str]] = {
    "openrlhf-0.11.2": (lambda answer: answer["rewards"], [ITEM], "mix"),
    "llamafactory-0.9.5": (lambda answer: answer["scores"], [ITEM, ICE], "mix"),
    "slime-624b824a-text": (lambda answer: [answer], [ITEM], "mix"),
    "slime-624b824a-messages": (lambda answer: [answer], [ITEM], "mix"),
    "ms-swift-4.6.0": (lambda answer: [float(answer["choices"][0]["message"]["content"])], [ITEM], "pref"),
    "langchain-community-0.4.2": (read_ranks, RANKED, "mix"),
    "llama-index-jinaai-0.6.0": (read_ranks, RANKED, "mix"),
}


def send_bytes(url: str, request: bytes) -> tuple[int, Any]:
    """Send the bytes of a request as they are, and return the status and the JSON of the answer."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


def test_every_recording_is_replayed() -> None:
    assert sorted(path.stem for path in RECORDED.glob("*.http")) == sorted(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_the_bytes_of_a_client_give_the_native_scores(serve: Serve, name: str) -> None:
    read, items, model = CLIENTS[name]
    url = serve(wires={"chat": {"content": "{score}"}}).url
    status, answer = send_bytes(url, (RECORDED / f"{name}.http").read_bytes())
    assert status == 200
    got = read(answer)
    rows = httpx.post(f"{url}/v1/score", json={"model": model, "items": items}).json()["data"]
    scores = [row["score"] for row in rows]
    if read is read_ranks:
        worst = min(scores)
        scores = [0.0 if score == worst else compute_probability(score) for score in scores]
    assert got == scores
