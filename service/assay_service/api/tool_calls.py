"""Read the tool calls of a message in OpenAI's form, and find the fields that only refer to other messages."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from assay_service.api.schemas import is_unicode
from assay_service.errors import ContentError
from assay_service.scoring.item import Message
from assay_service.scoring.tool_calls import ToolCall, dump_arguments, measure_depth

MOST_LEAVES = 1024  # values in the arguments of one message; each is looked for in the template's output
_DEEPEST = 32  # levels of lists and objects

# Ids of calls as OpenAI, Mistral, Kimi and vLLM write them; any other text is not an id.
_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


def read_tool_calls(value: object, where: str) -> tuple[ToolCall, ...]:
    """Return the tool calls of a message.

    Args:
        value: value of the field `tool_calls`.
        where: path of the field, for errors.

    Raises:
        ContentError: the value has another form than OpenAI's; the code is `invalid_message`.
    """
    if not isinstance(value, list):
        raise make_error(where, "is not a list of tool calls")
    calls = tuple(_read_call(call, index, f"{where}[{index}]") for index, call in enumerate(value))
    leaves = sum(1 for call in calls for _ in call.list_leaves(""))
    if leaves > MOST_LEAVES:
        raise make_error(where, f"has {leaves} names and values; at most {MOST_LEAVES} are scored")
    return calls


def find_links(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages with `links` in place of the fields that say no more than the order of the messages.

    Results of tools name the call that they answer. Most templates do not print these names, because results follow
    their calls in the same order. A name that says anything else stays a field, which the template has to print.
    """
    linked: list[Message] = []
    calls: tuple[ToolCall, ...] = ()
    number = 0
    for message in messages:
        if message.role != "tool":
            calls, number = message.tool_calls, 0
        linked.append(_link(message, calls[number]) if message.role == "tool" and number < len(calls) else message)
        number += message.role == "tool"
    return tuple(linked)


def make_error(where: str, why: str) -> ContentError:
    """Return the error of a message that cannot be scored."""
    return ContentError(f"{where} {why}", code="invalid_message", param=where)


def is_empty(value: object) -> bool:
    """Return True if `value` is null, an empty text, or a collection of nothing else."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or value == ""


def check_unicode(text: str, where: str) -> str:
    """Return the text at `where` if a tokenizer can encode it.

    Raises:
        ContentError: the text holds a lone surrogate; the code is `invalid_message`.
    """
    if not is_unicode(text):
        raise make_error(where, "is not valid Unicode; it holds a lone surrogate")
    return text


def _link(message: Message, call: ToolCall) -> Message:
    """Return a tool's message, whose fields that name the call it follows are links."""
    known = {"tool_call_id": call.id, "name": call.name}
    links = tuple((name, text) for name, text in message.fields if known.get(name) == text and _ID.fullmatch(text))
    fields = tuple(field for field in message.fields if field not in links)
    return replace(message, fields=fields, links=links)


def _read_call(call: object, index: int, where: str) -> ToolCall:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        raise make_error(where, "is not a function call in OpenAI's form, with `function` and its `name`")
    function: Mapping[str, Any] = call["function"]
    _check_fields(call, ("id", "type", "index", "function"), where)
    _check_fields(function, ("name", "arguments"), f"{where}.function")
    if call.get("type") not in (None, "function"):
        raise make_error(f"{where}.type", 'is not "function"; other calls are not scored')
    if call.get("index") is not None and (type(call["index"]) is not int or call["index"] != index):
        raise make_error(f"{where}.index", "is not the position of the call")
    if call.get("id") is not None and not (isinstance(call["id"], str) and _ID.fullmatch(call["id"])):
        raise make_error(f"{where}.id", "is not an id of 1 to 128 letters, digits and `_ . : / -`")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise make_error(f"{where}.function.name", "is not a text")
    check_unicode(name, f"{where}.function.name")
    arguments, sent_as_text = _read_arguments(function.get("arguments"), f"{where}.function.arguments")
    return ToolCall(name, arguments, call.get("id"), sent_as_text)


def _check_fields(value: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in sorted(value):
        if name not in known and not is_empty(value[name]):
            named = f"{where}.{name}" if name.isidentifier() and name.isascii() else where
            raise make_error(named, "does not belong to a tool call in OpenAI's form; remove it")


class _InexactNumber(Exception):
    """A number in the JSON text of arguments would be rounded."""


def _read_float(text: str) -> float:
    number = float(text)
    # `Decimal` compares the value as written, so `1e2` equals `100.0`, and `1e-400` does not equal `0.0`.
    if Decimal(text) != Decimal(repr(number)):
        raise _InexactNumber
    return number


def _read_arguments(value: object, where: str) -> tuple[str, bool]:
    """Return the JSON text of the arguments, and whether they were sent as text."""
    sent_as_text = isinstance(value, str)
    if isinstance(value, str):
        check_unicode(value, where)
        try:
            parsed = json.loads(value, object_pairs_hook=_build_object, parse_float=_read_float)
        except _InexactNumber:
            raise make_error(where, "has a number that is not exact as a float; the template would change it") from None
        except (ValueError, RecursionError):  # not JSON, a key twice, a number of thousands of digits, or too deep
            raise make_error(where, "is not the JSON text of an object without repeated keys") from None
    else:
        parsed = value
    if not isinstance(parsed, dict):
        raise make_error(where, "is not an object, nor the JSON text of one")
    if measure_depth(parsed) > _DEEPEST:
        raise make_error(where, f"is nested deeper than {_DEEPEST} levels")
    _check_values(parsed, where)
    return (value if isinstance(value, str) else dump_arguments(parsed)), sent_as_text


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError
    return keys


def _check_values(value: object, where: str) -> None:
    """Refuse texts that are not Unicode, and numbers that JSON does not have."""
    if isinstance(value, dict):
        for name, inner in value.items():
            check_unicode(name, where)
            _check_values(inner, where)
    elif isinstance(value, list):
        for inner in value:
            _check_values(inner, where)
    elif isinstance(value, str):
        check_unicode(value, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise make_error(where, "holds a number that is not finite")
