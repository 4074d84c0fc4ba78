"""Define requests, the error body, and the one table from error codes to HTTP statuses.

Requests are strict and refuse unknown fields (scoring-traps 10). No float may be NaN or infinite.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from assay_service.scoring.item import FinishReason, Truncation
from assay_service.signal_settings import Name, Weight, check_some_weight

STATUS: Mapping[str, int] = {
    "invalid_request": 422,
    "unauthorized": 401,
    "permission_denied": 403,
    "model_not_found": 404,
    "body_too_large": 413,
    "too_many_items": 413,
    "too_many_tokens": 413,
    "client_gone": 499,
    "overloaded": 429,
    "not_ready": 503,
    "deadline_exceeded": 504,
    "forward_failed": 500,
    "not_finite": 500,
    "internal": 500,
}
# Of requests that change the signals of a running service.
ADMIN_STATUS: Mapping[str, int] = {
    "admin_disabled": 404,
    "signal_exists": 409,
    "signal_in_use": 409,
    "operation_running": 409,
    "signal_refused": 422,
}
CONTENT_STATUS = 422  # a content error of an endpoint whose answer has no place for errors of single items


def is_unicode(text: str) -> bool:
    """Return whether a tokenizer can encode `text`; JSON can carry half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_unicode(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("must be valid Unicode; it holds a lone surrogate")
    return text


Text = Annotated[str, AfterValidator(_check_unicode)]
Weights = Annotated[dict[Name, Weight], Field(min_length=1)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ChatMessage(_Request):
    """One message of a conversation; the template decides which roles and further fields exist.

    `content` is a text, null, or a list of text parts; a message with `tool_calls` may lack it. Any other content
    becomes an error of its item.
    """

    model_config = ConfigDict(extra="allow")

    role: Annotated[Text, Field(min_length=1, max_length=64)]
    content: str | list[Any] | dict[str, Any] | int | float | bool | None

    @model_validator(mode="before")
    @classmethod
    def _allow_calls_alone(cls, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(value, dict) and value.get("tool_calls") and "content" not in value:
            return {**value, "content": None}
        return value


# The JSON type decides which form of a union is meant, so that an error names a field of that form only. The tags
# stand in pydantic's error locations and are removed from ours; no field has such a name.
UNION_TAGS = frozenset({"<text>", "<structured>"})


def get_form(value: object) -> str:
    """Return the tag of a value that is either a text or an object."""
    return "<text>" if isinstance(value, str) else "<structured>"


Prompt = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[ChatMessage], Field(fail_fast=True), Tag("<structured>")],
    Discriminator(get_form),
]


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ScoreItem(_Request):
    """An item: `prompt` and `completion`, or `messages`, whose last one is the assistant's, or ids of both texts."""

    prompt: Prompt | None = None
    completion: Text | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = None
    prompt_ids: TokenIds | None = None
    completion_ids: TokenIds | None = None
    finish_reason: FinishReason = "stop"
    id: Annotated[Text, Field(max_length=256)] | None = None
    tools: list[Any] | None = None

    @model_validator(mode="after")
    def _one_get_form(self) -> "ScoreItem":
        forms = ((self.prompt, self.completion), (self.messages,), (self.prompt_ids, self.completion_ids))
        given = [[field is not None for field in form] for form in forms]
        if sum(map(any, given)) != 1 or not any(map(all, given)):
            raise ValueError("set `prompt` and `completion`, or `messages`, or `prompt_ids` and `completion_ids`")
        if self.prompt_ids is not None and "finish_reason" in self.model_fields_set:
            raise ValueError("`finish_reason` is read from the last of `completion_ids`; remove it")
        if self.messages is not None and (not self.messages or self.messages[-1].role != "assistant"):
            raise ValueError("the last of `messages` must have the role `assistant`")
        return self


class _ChoosesBlend(_Request):
    """A request that names a signal or blend, or gives weights of its own."""

    model: Name | None = None
    weights: Weights | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> "_ChoosesBlend":
        if self.model is not None and self.weights is not None:
            raise ValueError("set `model` or `weights`, not both")
        if self.weights is not None:
            check_some_weight(self.weights)
        return self


class _HoldsItems(_Request):
    """A request with items; `tokenizer_sha256` is the hash of the `tokenizer.json` that gave their ids."""

    truncation: Truncation = "error"
    items: Annotated[list[ScoreItem], Field(fail_fast=True)]
    tokenizer_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _names_tokenizer(self) -> "_HoldsItems":
        if self.tokenizer_sha256 is None and any(item.prompt_ids is not None for item in self.items):
            raise ValueError("`prompt_ids` needs `tokenizer_sha256`, which is the output of `sha256sum tokenizer.json`")
        return self


class ScoreRequest(_HoldsItems, _ChoosesBlend):
    """Body of `POST /v1/score`."""


class RankCompletion(_Request):
    """One completion of a ranking."""

    completion: Text
    finish_reason: FinishReason = "stop"
    id: Annotated[Text, Field(max_length=256)] | None = None


RankEntry = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[RankCompletion, Tag("<structured>")],
    Discriminator(get_form),
]


class RankRequest(_ChoosesBlend):
    """Body of `POST /v1/rank`: a prompt, as a text or as messages, and its completions."""

    prompt: Prompt | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = None
    completions: Annotated[list[RankEntry], Field(fail_fast=True)]
    top_n: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> "RankRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("set exactly one of `prompt` and `messages`")
        return self


class CompareRequest(_Request):
    """Body of `POST /v1/compare`; without `model`, every signal and every blend compares `a` and `b`."""

    model: Name | None = None
    prompt: Prompt
    a: Text
    b: Text


class RenderRequest(_HoldsItems):
    """Body of `POST /v1/render`; without `model`, every signal renders the items."""

    model: Name | None = None


class AddSignalRequest(_Request):
    """Body of `POST /admin/signals`; `signal` has the keys of a signal in the configuration file."""

    name: Name
    signal: dict[str, Any]


class RequestError(BaseModel):
    """The reason why a request has no answer; it never holds a prompt or a completion."""

    code: str
    message: str
    param: str | None
    request_id: str
    retryable: bool


class ErrorBody(BaseModel):
    """Body of every answer whose status is not 2xx."""

    error: RequestError


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in sorted({*STATUS.values(), CONTENT_STATUS})
}
ADMIN_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in sorted({*ERROR_RESPONSES, *ADMIN_STATUS.values()})
}
