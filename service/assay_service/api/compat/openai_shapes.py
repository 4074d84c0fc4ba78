"""Read and write the shapes of OpenAI's API that other servers copy: `input`, embeddings, usage, list of models.

Every entry of an `input` is a rendered conversation, as a text or as token ids.
"""

import base64
import struct
import time
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from assay_service.api.compat.rendered import read_ids, read_texts
from assay_service.api.compat.wire import WireContext
from assay_service.api.schemas import Text
from assay_service.api.scoring import check_count
from assay_service.api.sources import ItemSource
from assay_service.scoring.blend import Blend

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Entry = str | list[int]


def _get_form(value: object) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, list):
        return "<lists of ids>"
    if isinstance(value, list):
        return "<ids>" if isinstance(first, int) else "<texts>"
    return "<text>"


# The form follows from the first value, so that an error names a field of that form only.
Input = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[list[Text], Field(min_length=1, fail_fast=True), Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[list[Ids], Field(min_length=1, fail_fast=True), Tag("<lists of ids>")],
    Discriminator(_get_form),
]


# One list of token ids, or several.
IdInput = Annotated[
    Annotated[Ids, Tag("<ids>")] | Annotated[list[Ids], Field(min_length=1, fail_fast=True), Tag("<lists of ids>")],
    Discriminator(lambda value: form if (form := _get_form(value)) == "<lists of ids>" else "<ids>"),
]


def _get_count(value: object) -> str:
    return "<texts>" if isinstance(value, list) else "<text>"


Encoding = Literal["float", "base64"]

# One text, or several.
Texts = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Text], Field(min_length=1, fail_fast=True), Tag("<texts>")],
    Discriminator(_get_count),
]


def is_single(value: Input) -> bool:
    """Return True for one text or one list of ids, whose answer other servers do not put into a list."""
    return isinstance(value, str) or isinstance(value[0], int)


def list_entries(value: Input) -> list[Entry]:
    """Return the entries of an `input`, each a text or a list of token ids."""
    return [value] if is_single(value) else list(value)  # type: ignore[list-item, arg-type]


def name_entries(value: Input, field: str) -> list[str]:
    """Return the path of each entry for errors: `input`, or `input[3]`."""
    return [field] if is_single(value) else [f"{field}[{index}]" for index in range(len(value))]


def read_entries(context: WireContext, blend: Blend, value: Input, field: str) -> list[ItemSource]:
    """Return the conversation of each entry of an `input`.

    Args:
        context: the wire that scores.
        blend: rule that makes one score from the logits.
        value: the `input`.
        field: name of the field of the request that holds it, for errors.

    Raises:
        ServingError: as for `check_count`, and for `read_texts` or `read_ids`.
    """
    entries = list_entries(value)
    check_count(context.request, len(entries), field)
    if isinstance(entries[0], str):
        return read_texts(context, blend, entries)  # type: ignore[arg-type]  # all entries have one form
    return read_ids(context, blend, entries)  # type: ignore[arg-type]


def list_texts(texts: Texts) -> list[str]:
    """Return one text or several as a list."""
    return [texts] if isinstance(texts, str) else texts


def encode_value(value: float, encoding: Encoding | None) -> list[float] | str:
    """Return a value as an embedding with one dimension: a list, or the base64 text of a little-endian float32."""
    return base64.b64encode(struct.pack("<f", value)).decode() if encoding == "base64" else [value]


def build_usage(tokens: int) -> dict[str, Any]:
    """Return the usage of a request whose items have so many tokens together; nothing is generated."""
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def list_models(context: WireContext) -> dict[str, Any]:
    """Return the names that requests may use as `model`; the default comes first, because clients take the first."""
    registry = context.registry
    names = dict.fromkeys([context.find_blend().name, *registry.signals, *registry.blends])
    created = int(time.time())
    return {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "assay",
                "root": name,
                "parent": None,
                "max_model_len": min(
                    registry.signals[signal].renderer.rules.max_length for signal in registry.blend(name, None).weights
                ),
            }
            for name in names
        ],
    }
