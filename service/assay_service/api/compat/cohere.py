"""Speak Cohere's wire: `POST /v1/rerank` and `POST /v2/rerank`, and `POST /rerank` as LiteLLM sends it.

Source: https://docs.cohere.com/reference/rerank and https://docs.cohere.com/v1/reference/rerank; LiteLLM's fields,
https://github.com/BerriAI/litellm/blob/main/litellm/types/rerank.py.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from assay_service.api.compat.ranking import Ranking, rank_documents
from assay_service.api.compat.wire import ANY, Context, Wire, WireBody, WireContext, make_router
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import Text, get_form


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error; Cohere answers 400 where Assay answers 422."""
    return 400 if refusal.status == 422 else refusal.status, {"id": request_id, "message": refusal.sentence}


WIRE = Wire(
    name="cohere",
    title="Cohere",
    activation="sigmoid; ranked by the score",
    overload_status=429,
    build_error=build_error,
)
router = make_router(WIRE)


class _Body(WireBody):
    """Fields that both versions share.

    Cohere cuts a long document to `max_tokens_per_doc` tokens, or scores only its best of `max_chunks_per_doc` pieces.
    Assay scores whole documents, so it accepts only values that ask for one whole piece. 0 is vLLM's "no limit".
    """

    ignored: ClassVar[Mapping[str, object]] = {
        **dict.fromkeys(("priority", "truncation_side", "user"), ANY),
        "max_tokens_per_doc": (0,),
        "max_tokens_per_query": (0,),
        "max_chunks_per_doc": (1,),
        "truncate_prompt_tokens": (),
        "instruction": ("",),
    }

    model: Annotated[Text, Field(max_length=1024)] | None = None
    query: Text
    top_n: Annotated[int, Field(ge=1)] | None = None


class DocumentObject(BaseModel):
    """A document of version 1 that is an object; its further fields are returned with it, and never scored."""

    model_config = ConfigDict(extra="allow", strict=True)

    text: Text


Document = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[DocumentObject, Tag("<structured>")], Discriminator(get_form)
]


class BodyV1(_Body):
    """Body of `POST /v1/rerank`."""

    # Without `rank_fields`, Cohere reads `text` alone; other fields would be joined in a way of its own.
    ignored: ClassVar[Mapping[str, object]] = {**_Body.ignored, "rank_fields": (["text"],)}

    documents: Annotated[list[Document], Field(min_length=1, fail_fast=True)]
    return_documents: bool | None = None


class BodyV2(_Body):
    """Body of `POST /v2/rerank`, whose answer never has documents; LiteLLM sends `return_documents` all the same."""

    ignored: ClassVar[Mapping[str, object]] = {**_Body.ignored, "rank_fields": (), "return_documents": ANY}

    documents: Annotated[list[Text], Field(min_length=1, fail_fast=True)]


@router.post("/rerank")
@router.post("/v1/rerank")
async def rerank_v1(body: BodyV1, context: Context) -> dict[str, Any]:
    """Rank documents; the answer holds them if the request asks for them."""
    ranking = await _rank(context, body, [_read(document) for document in body.documents])
    results = [
        {"index": place.index, "relevance_score": place.relevance}
        | ({"document": _show(body.documents[place.index])} if body.return_documents else {})
        for place in ranking.places[: body.top_n]
    ]
    return _build_answer(results, "1", ranking.tokens)


@router.post("/v2/rerank")
async def rerank_v2(body: BodyV2, context: Context) -> dict[str, Any]:
    """Rank documents; the answer holds their indices only."""
    ranking = await _rank(context, body, body.documents)
    results = [{"index": p.index, "relevance_score": p.relevance} for p in ranking.places[: body.top_n]]
    return _build_answer(results, "2", ranking.tokens)


async def _rank(context: WireContext, body: _Body, documents: Sequence[str]) -> Ranking:
    return await rank_documents(context, context.find_blend(body.model), body.query, documents, "documents")


def _read(document: str | DocumentObject) -> str:
    return document if isinstance(document, str) else document.text


def _show(document: str | DocumentObject) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else document.model_dump()


def _build_answer(results: list[dict[str, Any]], version: str, tokens: int) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "results": results,
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"search_units": 0},  # LiteLLM reads it as the price
            "tokens": {"input_tokens": tokens, "output_tokens": 0},
        },
    }
