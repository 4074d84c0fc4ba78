"""Read objects of OpenAI's Responses API as conversations: the input and output items of a model.

Source: https://platform.openai.com/docs/api-reference/responses/object. One turn of a model can be several items there:
its reasoning, its text, and its function calls.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from assay_service.api.messages import build_items
from assay_service.api.schemas import ChatMessage, ScoreItem
from assay_service.api.scorer import ItemSource
from assay_service.errors import ContentError
from assay_service.scoring.item import FinishReason

_ROLES = ("user", "assistant", "system", "developer", "tool")
# Fields of an item that say nothing about its text; the last four are those of NeMo-Gym's training servers.
_METADATA = frozenset(
    {"type", "id", "status", "phase", "prompt_token_ids", "generation_token_ids", "generation_log_probs"}
    | {"routed_experts"}
)
_UNFINISHED = ("failed", "cancelled", "in_progress", "queued")


def read_conversation(params: Mapping[str, Any], response: Mapping[str, Any]) -> ItemSource:
    """Return the item of a request to a model and its response, whose last message is the completion.

    Args:
        params: the body of the request, of which `instructions` and `input` are read.
        response: the response, of which `output`, `incomplete_details`, `status` and `error` are read.
    """
    try:
        return _build_item(build_messages(params, response), response)
    except ContentError as error:
        return error


def build_messages(params: Mapping[str, Any], response: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a request and its response as messages of the chat completions API; see `read_conversation`.

    Raises:
        ContentError: an item has no text, or the response does not end with the assistant's message.
    """
    turns = _Turns()
    if params.get("instructions") is not None:
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
    if response.get("error") is not None or response.get("status") in _UNFINISHED:
        raise _make_error(where, "is not a response that ended: it has an error, or it was still running")
    before = len(turns.messages)
    turns.add_items(response.get("output"), f"{where}.output")
    if len(turns.messages) == before or turns.messages[-1]["role"] != "assistant":
        raise _make_error(f"{where}.output", "does not end with a message of the assistant, so there is no completion")
    return turns.messages


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
        self._reasoning: str | None = None

    def add_items(self, items: object, where: str) -> None:
        """Add input or output items.

        Raises:
            ContentError: an item is of a kind that has no text, or a field has the wrong type.
        """
        if not isinstance(items, list):
            raise _make_error(where, "is not a list of items")
        for index, item in enumerate(items):
            self._add_item(item, f"{where}[{index}]")
        if self._reasoning is not None:  # cut off before the text began
            self.add_message({"role": "assistant", "content": ""}, where)

    def _add_item(self, item: object, where: str) -> None:
        if not isinstance(item, Mapping):
            raise _make_error(where, "is not an object")
        kind = item.get("type") or "message"
        if kind == "message":
            self.add_message(item, where)
        elif kind == "reasoning":
            self._reasoning = (self._reasoning or "") + _read_reasoning(item, where)
        elif kind == "function_call":
            self._add_call(item, where)
        elif kind == "function_call_output":
            self.add_message(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}, where
            )
        else:
            raise _make_error(where, "is of a type without text; messages, reasoning and function calls can be scored")

    def add_message(self, message: Mapping[str, Any], where: str) -> None:
        """Add one message; reasoning that came before it becomes its `reasoning_content`."""
        if message.get("role") not in _ROLES:
            raise _make_error(f"{where}.role", f"is none of {', '.join(_ROLES)}")
        turn = {name: value for name, value in message.items() if name not in _METADATA}
        turn["content"] = _read_parts(message.get("content"))
        if self._reasoning is not None:
            if turn["role"] != "assistant":
                raise _make_error(where, "follows reasoning, and is not the assistant's")
            turn["reasoning_content"], self._reasoning = self._reasoning, None
        self.messages.append(turn)

    def _add_call(self, item: Mapping[str, Any], where: str) -> None:
        """Add a function call to the turn of the assistant that it belongs to."""
        open_turn = self._reasoning is None and self.messages and self.messages[-1]["role"] == "assistant"
        if not open_turn:
            self.add_message({"role": "assistant", "content": None}, where)
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        self.messages[-1].setdefault("tool_calls", []).append(call)


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


def _read_reasoning(item: Mapping[str, Any], where: str) -> str:
    """Return the text of a reasoning item: its content, or its summary if it has none."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts
    ):
        raise _make_error(where, "holds reasoning that is not text")
    return "".join(part["text"] for part in parts)


def _make_error(where: str, why: str) -> ContentError:
    return ContentError(f"{where} {why}", code="invalid_message", param=where)
