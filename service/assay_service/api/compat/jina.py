"""Speak Jina's wire: `POST /v1/rerank`, as Jina's hosted rerankers answer it.

Source: https://api.jina.ai/redoc#tag/rerank; clients of LangChain and LiteLLM.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from assay_service.api.compat.ranking import rank_documents
from assay_service.api.compat.wire import Context, Wire, WireBody, make_router
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import Text, get_form


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error; clients print `detail`."""
    return refusal.status, {"detail": refusal.sentence, "request_id": request_id}


WIRE = Wire(
    name="jina",
    title="Jina",
    activation="sigmoid; ranked by the score",
    overload_status=429,
    build_error=build_error,
)
router = make_router(WIRE)


class TextObject(WireBody):
    """A query or document that is an object; images and further fields are refused."""

    text: Text


TextOrObject = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[TextObject, Tag("<structured>")], Discriminator(get_form)
]


class Body(WireBody):
    """Body of `POST /v1/rerank`."""

    # Jina cuts long texts to `max_doc_length` and `max_query_length`; Assay refuses texts that are too long.
    ignored: ClassVar[Mapping[str, object]] = {
        "truncation": (False,),
        "return_embeddings": (False,),
        "max_doc_length": (),
        "max_query_length": (),
    }

    model: Annotated[Text, Field(max_length=1024)] | None = None
    query: TextOrObject
    documents: Annotated[list[TextOrObject], Field(min_length=1, fail_fast=True)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None


@router.post("/v1/rerank")
async def rerank(body: Body, context: Context) -> dict[str, Any]:
    """Rank documents; the answer holds them unless the request says no."""
    blend = context.find_blend(body.model)
    documents = [_read(document) for document in body.documents]
    ranking = await rank_documents(context, blend, _read(body.query), documents, "documents")
    return {
        "model": blend.name,
        "object": "list",
        "usage": {"total_tokens": ranking.tokens, "prompt_tokens": ranking.tokens},
        "results": [
            {"index": place.index, "relevance_score": place.relevance}
            | ({} if body.return_documents is False else {"document": {"text": documents[place.index]}})
            for place in ranking.places[: body.top_n]
        ],
    }


def _read(value: str | TextObject) -> str:
    return value if isinstance(value, str) else value.text
