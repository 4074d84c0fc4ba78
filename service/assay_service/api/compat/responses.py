"""Read objects of OpenAI's Responses API as conversations: the input and output items of a model.

Source: https://platform.openai.com/docs/api-reference/responses/object.

One turn of a model can be several items there: its reasoning, one message, and function calls. All of the assistant's
items up to the result of a function, or a message of another role, are one turn. A turn becomes one message of the chat
completions API, which has no order of text and calls. Reasoning comes first in its turn. Two messages with text in one
turn are refused, because servers join them in different ways. A response begins a turn of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from assay_service.api.messages import build_items
from assay_service.api.schemas import ChatMessage, ScoreItem
from assay_service.api.sources import ItemSource
from assay_service.api.tool_calls import is_empty, make_error
from assay_service.errors import ContentError
from assay_service.scoring.item import FinishReason

_ROLES = ("user", "assistant", "system", "developer", "tool")
# Fields of an item that say nothing about its text; the last four are those of NeMo-Gym's training servers.
_METADATA = frozenset(
    {"type", "id", "status", "phase", "prompt_token_ids", "generation_token_ids", "generation_log_probs"}
    | {"routed_experts"}
)
_PART = frozenset({"type", "text"})
_ENDED = ("completed", "incomplete")
_STATUSES = (*_ENDED, "in_progress")  # of an item
# Fields of a request that stand for text which only the policy's server knows.
_UNKNOWN_HISTORY = ("prompt", "previous_response_id", "conversation")
# Keys of `metadata` by which NeMo-Gym's model servers put audio into the last user message.
_AUDIO = ("audio_data", "audio_path", "audio_paths")


def read_conversation(params: Mapping[str, Any], response: Mapping[str, Any]) -> ItemSource:
    """Return the item of a request to a model and its response, whose last message is the completion.

    Args:
        params: the body of the request, of which `instructions` and `input` are read. Definitions of tools are not.
        response: the response, of which `output`, `incomplete_details`, `status` and `error` are read. Fields of its
            request that it repeats are compared with the request.
    """
    try:
        return _build_item(build_messages(params, response), response)
    except ContentError as error:
        return error


def build_messages(params: Mapping[str, Any], response: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a request and its response as messages of the chat completions API; see `read_conversation`.

    Raises:
        ContentError: an item has no text, the request names a history that it does not hold, or the response
            ends without the assistant's message.
    """
    _refuse_unknown_history(params, "responses_create_params")
    metadata = params.get("metadata")
    for name in _AUDIO:
        if isinstance(metadata, Mapping) and not is_empty(metadata.get(name)):
            raise make_error(f"responses_create_params.metadata.{name}", "is audio in a message; only text is scored")
    turns = _Turns()
    if not is_empty(params.get("instructions")):
        turns.add_message({"role": "system", "content": params["instructions"]}, "instructions")
    given = params.get("input")
    if isinstance(given, str):
        turns.add_message({"role": "user", "content": given}, "input")
    else:
        turns.add_items(given, "responses_create_params.input")
    return _add_response(turns, response, "response")


def read_completion(history: Sequence[Mapping[str, Any]], response: Mapping[str, Any], where: str) -> ItemSource:
    """Return the item of a conversation and a response that continues it.

    Args:
        history: the messages before the response, in the form of chat completions or of input items.
        response: the response; see `read_conversation`.
        where: the field that holds the response, for errors.
    """
    try:
        turns = _Turns()
        turns.add_items(history, "conversation_history")
        return _build_item(_add_response(turns, response, where), response)
    except ContentError as error:
        return error


def _add_response(turns: "_Turns", response: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    if response.get("error") is not None or response.get("status") not in (None, *_ENDED):
        raise make_error(where, "is not a response that ended: it has an error, or a status of another kind")
    _check_repeated(turns.messages, response, where)
    before = len(turns.messages)
    output: Any = response.get("output")
    turns.add_items(output, f"{where}.output")
    if len(turns.messages) == before or turns.messages[-1]["role"] != "assistant":
        raise make_error(f"{where}.output", "does not end with a message of the assistant, so there is no completion")
    if output[-1].get("status") == "in_progress":
        raise make_error(f"{where}.output", "ends with an item that was still running")
    return turns.messages


def _check_repeated(messages: Sequence[Mapping[str, Any]], response: Mapping[str, Any], where: str) -> None:
    """Refuse a response whose server read more than the messages before it: it repeats fields of its request."""
    _refuse_unknown_history(response, where)
    given = response.get("instructions")
    known = [_join_parts(message["content"]) for message in messages if message["role"] in ("system", "developer")]
    if not is_empty(given) and _join_parts(given) not in known:
        raise make_error(
            f"{where}.instructions", "are not among the messages before the response; send them there, too"
        )


def _refuse_unknown_history(fields: Mapping[str, Any], where: str) -> None:
    for name in _UNKNOWN_HISTORY:
        if not is_empty(fields.get(name)):
            raise make_error(f"{where}.{name}", "stands for text that only the policy's server knows")


def _join_parts(content: object) -> object:
    """Return the text of a content that is a list with one text part, and any other content as it is."""
    part = content[0] if isinstance(content, list) and len(content) == 1 else None
    return part.get("text") if isinstance(part, Mapping) else content


def _build_item(messages: Sequence[Mapping[str, Any]], response: Mapping[str, Any]) -> ItemSource:
    chat = [ChatMessage.model_validate(message) for message in messages]
    return build_items([ScoreItem(messages=chat, finish_reason=_read_finish_reason(response))])[0]


def _read_finish_reason(response: Mapping[str, Any]) -> FinishReason:
    """Return "length" if the response says that its output was cut off, for whatever reason."""
    last = response["output"][-1]
    incomplete = response.get("incomplete_details") or "incomplete" in (response.get("status"), last.get("status"))
    return "length" if incomplete else "stop"


class _Turns:
    """The messages of a conversation, in the form of chat completions, as items are added to it."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the assistant's turn that the next item may belong to
        self._reasoning: dict[str, str] | None = None  # of the turn that the next item begins, by the message's field

    def add_items(self, items: object, where: str) -> None:
        """Add input or output items, whose first one belongs to no earlier turn.

        Raises:
            ContentError: an item is of a kind that has no text, a field has the wrong type, or reasoning is last.
        """
        if not isinstance(items, list):
            raise make_error(where, "is not a list of items")
        self._open = None
        for index, item in enumerate(items):
            self._add_item(item, f"{where}[{index}]")
        if self._reasoning is not None:
            raise make_error(where, "ends with reasoning, after which there is no completion")

    def _add_item(self, item: object, where: str) -> None:
        if not isinstance(item, Mapping):
            raise make_error(where, "is not an object")
        if item.get("status") not in (None, *_STATUSES):
            raise make_error(f"{where}.status", f"is none of {', '.join(_STATUSES)}")
        kind = item.get("type") or "message"
        if kind == "message":
            self.add_message(item, where)
        elif kind == "reasoning":
            self._add_reasoning(item, where)
        elif kind == "function_call":
            self._add_call(item, where)
        elif kind == "function_call_output":
            self.add_message(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}, where
            )
        else:
            raise make_error(where, "is of a type without text; messages, reasoning and function calls can be scored")

    def add_message(self, message: Mapping[str, Any], where: str) -> None:
        """Add one message; the assistant's belongs to its open turn.

        Raises:
            ContentError: the role is unknown, the content cannot be read, or another role follows reasoning.
        """
        if message.get("role") not in _ROLES:
            raise make_error(f"{where}.role", f"is none of {', '.join(_ROLES)}")
        turn = {name: value for name, value in message.items() if name not in _METADATA}
        turn["content"] = _read_parts(message.get("content"))
        if turn["role"] == "assistant":
            self._add_to_turn(turn, where)
            return
        if self._reasoning is not None:
            raise make_error(where, "follows reasoning, and is not the assistant's")
        self.messages.append(turn)
        self._open = None

    def _add_reasoning(self, item: Mapping[str, Any], where: str) -> None:
        if self._open is not None:
            raise make_error(where, "is reasoning after the text or a function call of the same turn")
        field, text = _read_reasoning(item, where)
        earlier = self._reasoning or {}
        self._reasoning = {**earlier, field: earlier.get(field, "") + text}

    def _add_call(self, item: Mapping[str, Any], where: str) -> None:
        if self._open is None:
            self._open = self._begin_turn()
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        calls = self._open.get("tool_calls", [])
        if not isinstance(calls, list):
            raise make_error(where, "follows `tool_calls` that are not a list")
        self._open["tool_calls"] = [*calls, call]

    def _add_to_turn(self, message: Mapping[str, Any], where: str) -> None:
        """Add the fields of the assistant's message to the open turn, which may not have them yet."""
        if self._open is None:
            self._open = self._begin_turn()
        for name, value in message.items():
            if name == "role" or not _has_text(value):
                continue
            if _has_text(self._open.get(name)):
                raise make_error(where, "repeats a field of its turn, such as its text, which servers join differently")
            self._open[name] = value
        if self._open["content"] is None:
            self._open["content"] = message["content"]

    def _begin_turn(self) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": "assistant", "content": None}
        if self._reasoning is not None:
            turn |= self._reasoning
            self._reasoning = None
        self.messages.append(turn)
        return turn


def _has_text(value: object) -> bool:
    """Return True if a field of a message is not empty; a list of empty text parts is."""
    if isinstance(value, list):
        return not all(isinstance(part, Mapping) and part.get("text") == "" and set(part) <= _PART for part in value)
    return not is_empty(value)


def _read_parts(content: object) -> object:
    """Return the content of a message without the annotations and log-probabilities of its text."""
    if not isinstance(content, list):
        return content
    return [
        {name: value for name, value in part.items() if name not in ("annotations", "logprobs")}
        if isinstance(part, Mapping)
        else part
        for part in content
    ]


def _read_reasoning(item: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return the field of a message that holds the text of a reasoning item, and the text.

    It is the content, or the summary, in which NeMo-Gym's model servers send the whole reasoning. A summary beside
    `encrypted_content` is another text than the reasoning, so the encrypted text stands for it. No template prints that
    field: each signal's policy for reasoning removes it, or the item is refused.
    """
    content, encrypted = item.get("content"), item.get("encrypted_content")
    if not content and not is_empty(encrypted):
        if not isinstance(encrypted, str):
            raise make_error(f"{where}.encrypted_content", "is not a text")
        return "encrypted_content", encrypted
    parts = content or item.get("summary") or []
    if not isinstance(parts, list) or not all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts
    ):
        raise make_error(where, "holds reasoning that is not text")
    return "reasoning_content", "".join(part["text"] for part in parts)
