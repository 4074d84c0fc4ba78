"""Speak TEI's wire for classifiers: `POST /predict` and `POST /rerank` of Hugging Face's text-embeddings-inference.

Source: https://github.com/huggingface/text-embeddings-inference, `router/src/http/types.rs` and `server.rs`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from assay_service.api.compat.ranking import rank_documents
from assay_service.api.compat.rendered import read_texts
from assay_service.api.compat.wire import Context, Wire, WireBody, WireContext, make_router
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import Text
from assay_service.api.scoring import check_count
from assay_service.api.sources import ItemSource
from assay_service.errors import ServingError
from assay_service.scoring.blend import Blend, compute_probability
from assay_service.scoring.item import Item, Truncation

_EMPTY = "`texts` cannot be empty"
_TYPES = {
    "overloaded": "Overloaded",
    "not_ready": "Unhealthy",
    "unauthorized": "Unauthorized",
    "permission_denied": "Forbidden",
    "method_not_allowed": "Validation",  # 405, as the HTTP library of TEI has it
}


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error: 422 for what the client can fix, 424 for what the service cannot do."""
    if refusal.code in _TYPES:
        status, kind = refusal.status, _TYPES[refusal.code]
    elif refusal.message == _EMPTY:
        status, kind = 400, "Empty"
    elif refusal.status >= 500:
        status, kind = 424, "Backend"
    else:
        status, kind = 422, "Validation"
    return status, {"error": refusal.sentence, "error_type": kind, "request_id": request_id}


WIRE = Wire(
    name="tei",
    title="TEI",
    activation="sigmoid; `raw_scores: true` gives the score",
    overload_status=429,
    build_error=build_error,
    messages=(_EMPTY,),
)
router = make_router(WIRE)


class _Body(WireBody):
    """Fields that both endpoints share."""

    # Hugging Face's client wraps options of its own into `parameters`, which TEI ignores.
    ignored: ClassVar[Mapping[str, object]] = {"parameters": ({},)}

    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    raw_scores: bool = False

    @property
    def truncation(self) -> Truncation:
        """Return the policy for prompts that are too long.

        TEI's default cuts from the right, so the end of the completion. Assay refuses such an item instead.
        """
        return "prompt_left" if self.truncate and self.truncation_direction.lower() == "left" else "error"

    def convert(self, score: float) -> float:
        """Return a score as the request asks for it: its sigmoid, or the score itself."""
        return score if self.raw_scores else compute_probability(score)


def _get_form(value: object) -> str:
    if isinstance(value, list):
        return "<texts>" if value and isinstance(value[0], str) else "<batch>"
    return "<text>"


Sequence = Annotated[list[Text], Field(min_length=1, max_length=2, fail_fast=True)]

# The first value decides, so `["a", "b"]` is one pair of prompt and completion, and not two texts.
Inputs = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Sequence, Tag("<texts>")]
    | Annotated[list[Sequence], Field(min_length=1, fail_fast=True), Tag("<batch>")],
    Discriminator(_get_form),
]


class PredictBody(_Body):
    """Body of `POST /predict`: a text, a pair of prompt and completion, or a list of lists of one or two texts."""

    inputs: Inputs


class RerankBody(_Body):
    """Body of `POST /rerank`: a prompt as `query`, and its completions as `texts`."""

    query: Text
    texts: Annotated[list[Text], Field(fail_fast=True)]
    return_text: bool = False


@router.post("/predict")
async def predict(body: PredictBody, context: Context) -> list[Any]:
    """Score rendered conversations, or pairs of a prompt and a completion."""
    blend = context.find_blend()
    is_batch = _get_form(body.inputs) == "<batch>"
    sequences = _list_sequences(body.inputs)
    check_count(context.request, len(sequences), "inputs")
    items = _read_sequences(context, blend, sequences)
    names = [f"inputs[{index}]" for index in range(len(items))] if is_batch else ["inputs"]
    scored = await context.score(items, blend, names, body.truncation)
    # One label only: a reward model has no second class whose score could be sent.
    predictions = [[{"score": body.convert(one.score), "label": "LABEL_0"}] for one in scored]
    # TEI nests one list less for a single input, and its clients index into it.
    return predictions if is_batch else predictions[0]


@router.post("/rerank")
async def rerank(body: RerankBody, context: Context) -> list[dict[str, Any]]:
    """Rank the completions of a prompt.

    Raises:
        AssayError: `texts` is empty, or the prompt or a completion cannot be scored.
    """
    # TEI answers an empty list with a status and a type of its own.
    if not body.texts:
        raise ServingError(_EMPTY, code="invalid_request")
    ranking = await rank_documents(context, context.find_blend(), body.query, body.texts, "texts", body.truncation)
    return [
        {"index": place.index, "score": body.convert(place.score)}
        | ({"text": body.texts[place.index]} if body.return_text else {})
        for place in ranking.places
    ]


def _list_sequences(inputs: Inputs) -> list[list[str]]:
    """Return the inputs as lists of one or two texts."""
    form = _get_form(inputs)
    if form == "<text>":
        return [[inputs]]  # type: ignore[list-item]
    return [inputs] if form == "<texts>" else inputs  # type: ignore[list-item, return-value]


def _read_sequences(context: WireContext, blend: Blend, sequences: list[list[str]]) -> list[ItemSource]:
    texts = iter(read_texts(context, blend, [sequence[0] for sequence in sequences if len(sequence) == 1]))
    return [next(texts) if len(sequence) == 1 else Item.of(sequence[0], sequence[1]) for sequence in sequences]
