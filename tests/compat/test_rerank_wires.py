"""Rerank by the wires of Cohere and Jina, called by their clients' own code, and compared with `/v1/rank`."""

import asyncio
import math
from contextlib import closing
from typing import Any

import cohere
import httpx
import litellm
import pytest
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

from tests.compat.conftest import Serve, read_body

QUERY = "Name a prime."
DOCUMENTS = ["Two.", "Four, since it is even.", "Seven is one.", "I do not know."]


@pytest.fixture
def native(url: str) -> dict[int, float]:
    """The scores of `/v1/rank` by index, from the best to the worst."""
    answer = httpx.post(f"{url}/v1/rank", json={"prompt": QUERY, "completions": DOCUMENTS})
    return {row["index"]: row["score"] for row in answer.json()["results"]}


def expect(results: Any, native: dict[int, float], top_n: int | None = None) -> None:
    """Check order and values; the sigmoid is written a second time here."""
    found = [
        (r["index"], r["relevance_score"]) if isinstance(r, dict) else (r.index, r.relevance_score) for r in results
    ]
    assert [index for index, _ in found] == list(native)[:top_n]
    for index, score in found:
        assert score == pytest.approx(0.5 + 0.5 * math.tanh(native[index] / 2), abs=1e-12)


def test_cohere_v2(url: str, native: dict[int, float]) -> None:
    with cohere.ClientV2("key", base_url=f"{url}/compat/cohere") as client:
        answer = client.rerank(model="mix", query=QUERY, documents=DOCUMENTS, top_n=3, priority=5)
    expect(answer.results, native, 3)
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "2"


def test_cohere_v2_async(url: str, native: dict[int, float]) -> None:
    async def call() -> Any:
        async with httpx.AsyncClient() as http:
            client = cohere.AsyncClientV2("key", base_url=f"{url}/compat/cohere", httpx_client=http)
            return await client.rerank(model="mix", query=QUERY, documents=DOCUMENTS)

    expect(asyncio.run(call()).results, native)


def test_cohere_v1_returns_documents_with_their_fields(url: str, native: dict[int, float]) -> None:
    documents: list[Any] = [DOCUMENTS[0], *({"text": text, "source": "b"} for text in DOCUMENTS[1:])]
    with cohere.Client("key", base_url=f"{url}/compat/cohere") as client:
        answer = client.rerank(
            model="mix", query=QUERY, documents=documents, return_documents=True, rank_fields=["text"]
        )
        without = client.rerank(query=QUERY, documents=documents)
    expect(answer.results, native)
    for row in answer.results:
        assert row.document is not None
        assert row.document.text == DOCUMENTS[row.index]
        assert getattr(row.document, "source", None) == (None if row.index == 0 else "b")
    assert without.results[0].document is None


def test_the_errors_of_the_cohere_sdk(url: str) -> None:
    with cohere.ClientV2("key", base_url=f"{url}/compat/cohere") as client:
        with pytest.raises(cohere.NotFoundError) as missing:
            client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)
        with pytest.raises(cohere.BadRequestError) as cut:
            client.rerank(model="mix", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=512)
    assert missing.value.body["message"].startswith("model: neither a signal nor a blend")
    assert "max_tokens_per_doc" in cut.value.body["message"]


def call_litellm(url: str, provider: str, **options: Any) -> Any:
    """Call LiteLLM with a connection of its own, which is closed again; its shared ones stay open for good."""
    with closing(HTTPHandler()) as client:
        return litellm.rerank(
            model=f"{provider}/mix",
            query=QUERY,
            documents=DOCUMENTS,
            api_base=url,
            api_key="key",
            client=client,
            **options,
        ).results


@pytest.mark.parametrize("provider", ["cohere", "hosted_vllm"])
def test_litellm(url: str, native: dict[int, float], provider: str) -> None:
    expect(call_litellm(f"{url}/compat/cohere", provider), native)
    expect(call_litellm(f"{url}/compat/cohere", provider, top_n=2), native, 2)


def test_litellms_provider_for_infinity_reads_no_documents(url: str, native: dict[int, float]) -> None:
    expect(call_litellm(f"{url}/compat/cohere", "infinity", return_documents=False), native)


def test_litellm_async(url: str, native: dict[int, float]) -> None:
    async def call() -> Any:
        client = AsyncHTTPHandler()
        try:
            return await litellm.arerank(
                model="cohere/mix",
                query=QUERY,
                documents=DOCUMENTS,
                api_base=f"{url}/compat/cohere",
                api_key="key",
                client=client,
            )
        finally:
            await client.close()

    expect(asyncio.run(call()).results, native)


def test_litellm_speaks_jina_at_the_root_only(serve: Serve, native: dict[int, float]) -> None:
    url = serve(root="jina").url
    results = call_litellm(url, "jina_ai", return_documents=True)
    expect(results, native)
    assert [row["document"]["text"] for row in results] == [DOCUMENTS[index] for index in native]


def test_langchain(url: str, native: dict[int, float]) -> None:
    ranker = CohereRerank(base_url=f"{url}/compat/cohere", cohere_api_key="key", model="mix", top_n=2)
    with ranker.client:
        expect(ranker.rerank(DOCUMENTS, QUERY), native, 2)
        kept = ranker.compress_documents([Document(text) for text in DOCUMENTS], QUERY)
    assert [document.page_content for document in kept] == [DOCUMENTS[index] for index in list(native)[:2]]


def test_langchains_client_of_jina_reads_the_reason_of_an_error(url: str) -> None:
    body = read_body("langchain-community-0.4.2") | {"model": "none"}
    answer = httpx.post(f"{url}/compat/jina/v1/rerank", json=body).json()
    assert answer["detail"].startswith("model: ")  # the client reads `detail` where `results` is missing


def test_jina_documents_as_objects_and_without_texts(url: str, native: dict[int, float]) -> None:
    body = {"query": {"text": QUERY}, "documents": [{"text": text} for text in DOCUMENTS], "return_documents": False}
    answer = httpx.post(f"{url}/compat/jina/v1/rerank", json=body).json()
    expect(answer["results"], native)
    assert all(set(row) == {"index", "relevance_score"} for row in answer["results"])
    assert answer["model"] == "mix"
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("path", ["cohere/v1/rerank", "cohere/v2/rerank", "cohere/rerank", "jina/v1/rerank"])
def test_equal_documents_are_ranked_by_index(url: str, path: str) -> None:
    body = {"query": QUERY, "documents": ["Same.", "Other.", "Same.", "Same."]}
    order = [row["index"] for row in httpx.post(f"{url}/compat/{path}", json=body).json()["results"]]
    assert [index for index in order if index != 1] == [0, 2, 3]


@pytest.mark.parametrize("path", ["cohere/v2/rerank", "jina/v1/rerank", "tei/rerank"])
def test_a_full_sigmoid_does_not_hide_the_order(serve: Serve, path: str) -> None:
    """At a floor of 800 the sigmoid is 1.0 whatever the logit; the refused item still comes first, by its score."""
    name = path.partition("/")[0]
    url = serve(wires={name: {"on_item_error": {"floor": 800.0}}}).url
    long = "word " * 2000
    field = "texts" if name == "tei" else "documents"
    answer = httpx.post(f"{url}/compat/{path}", json={"query": QUERY, field: ["Two.", long]})
    assert answer.headers["x-assay-floored-items"] == "1"
    rows = answer.json() if name == "tei" else answer.json()["results"]
    assert [row["index"] for row in rows] == [1, 0]
    assert rows[0].get("score", rows[0].get("relevance_score")) == 1.0
