"""Read the rows that trainers pass to reward functions: prompts, completions and token ids become items.

A row that has no form to be scored becomes a failure in its place, so that the other rows are scored. The policy can
produce such rows, for example a conversation that ends with the result of a tool.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from assay_client.errors import InvalidInput
from assay_client.messages import Message, read_messages
from assay_client.types import FinishReason, Item, ItemError, ScoreFailure, ScoreResult

INVALID_ROW = "invalid_row"


def read_token_ids(eos_token_id: int | Collection[int]) -> frozenset[int]:
    """Return the end tokens as a set, from one id or several.

    Raises:
        InvalidInput: there is none, or a value is not a token id.
    """
    given = eos_token_id if isinstance(eos_token_id, Collection) else [eos_token_id]  # a tokenizer may have None
    ids = frozenset(given)
    if not ids or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise InvalidInput("`eos_token_id` must be the id of the policy's end token, or a list of such ids")
    return ids


def read_finish_reason(completion_ids: Sequence[int], eos_token_ids: Collection[int]) -> FinishReason:
    """Return "stop" if the last token of a completion is an end token; otherwise "length", also without any token."""
    return "stop" if len(completion_ids) and completion_ids[-1] in eos_token_ids else "length"


def read_end_tokens(end_token: str | Collection[str]) -> tuple[str, ...]:
    """Return the texts of the end tokens; the first one is that of the policy's template.

    Raises:
        InvalidInput: there is none, or one is empty.
    """
    tokens = (end_token,) if isinstance(end_token, str) else tuple(end_token)
    if not tokens or not all(tokens):
        raise InvalidInput("`end_token` must be the text of the policy's end token, or a list of such texts")
    return tokens


def split_end_token(text: str, end_tokens: tuple[str, ...]) -> tuple[str, FinishReason]:
    """Return a completion without its end token, and "stop"; or unchanged, and "length", if it has none."""
    for token in end_tokens:
        if text.endswith(token):
            return text[: -len(token)], "stop"
    return text, "length"


def convert_finish_reason(reason: object) -> FinishReason | None:
    """Return the finish reason of a generator in the words of the service; calls of tools end a turn.

    Any other reason, such as "abort" or "content_filter", is returned as it is. The row then fails, because its text is
    not what the policy meant to say.
    """
    return cast("FinishReason | None", "stop" if reason in ("tool_calls", "function_call") else reason)


@dataclass(frozen=True)
class Rows:
    """The rows of one call as items; `entries[i]` is the item of row i, or the reason why it has none."""

    entries: tuple[Item | ItemError, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """Return the items that can be sent, in the order of the rows."""
        return tuple(entry for entry in self.entries if isinstance(entry, Item))

    def place(self, result: ScoreResult) -> ScoreResult:
        """Return the result of `items` with one outcome for each row: `data[i]` is about row i."""
        scored = iter(result.data)
        data = (
            replace(next(scored), index=index) if isinstance(entry, Item) else ScoreFailure(index, None, entry)
            for index, entry in enumerate(self.entries)
        )
        return replace(result, data=tuple(data))


def build_rows(
    prompts: Iterable[object], completions: Iterable[object], finish_reasons: Iterable[FinishReason | None]
) -> Rows:
    """Build the items of rows.

    Args:
        prompts: the prompt of each row, as text or as a list of messages.
        completions: the completion of each row, as text or as a list of messages that ends with an assistant's.
        finish_reasons: the finish reason of each row, None where it is unknown.

    Raises:
        InvalidInput: the three do not have the same length.
    """
    try:
        return Rows(tuple(_build_entry(*row) for row in zip(prompts, completions, finish_reasons, strict=True)))
    except ValueError as error:  # of `zip`, which names the shorter one
        raise InvalidInput(f"prompts, completions and finish reasons must have one length: {error}") from None


def build_token_rows(prompt_ids: Iterable[object], completion_ids: Iterable[object]) -> Rows:
    """Build the items of rows whose token ids are scored; the request names their tokenizer.

    Args:
        prompt_ids: the token ids of each rendered prompt, as a list or an array `[T]`, without pads.
        completion_ids: the token ids of each completion, special tokens included.

    Raises:
        InvalidInput: the two do not have the same length.
    """
    try:
        return Rows(tuple(_build_token_entry(*row) for row in zip(prompt_ids, completion_ids, strict=True)))
    except ValueError as error:  # of `zip`, which names the shorter one
        raise InvalidInput(f"the token ids of prompts and completions must have one length: {error}") from None


def _build_token_entry(prompt: Any, completion: Any) -> Item | ItemError:
    ids = [part.tolist() if hasattr(part, "tolist") else part for part in (prompt, completion)]
    try:
        return Item(prompt_ids=ids[0], completion_ids=ids[1])
    except InvalidInput as error:
        return ItemError(INVALID_ROW, str(error), None, retryable=False)


def _build_entry(prompt: object, completion: object, finish_reason: object) -> Item | ItemError:
    try:
        return build_item(prompt, completion, finish_reason)  # type: ignore[arg-type]  # checked by `Item`
    except InvalidInput as error:
        return ItemError(INVALID_ROW, str(error), None, retryable=False)


def build_item(prompt: object, completion: object, finish_reason: FinishReason | None = None) -> Item:
    """Build the item of one row; the arguments are single values of those of `build_rows`.

    Raises:
        InvalidInput: a value has another form, or the last message is not the assistant's.
    """
    if isinstance(completion, str):
        # A prompt that is None would be reported as a missing field of an item, which the trainer's user never wrote.
        if prompt is None:
            raise InvalidInput("the row has no prompt")
        return Item(prompt=prompt, completion=completion, finish_reason=finish_reason)  # type: ignore[arg-type]
    turns = _read_turns(completion, "completion")
    before = (Message("user", prompt),) if isinstance(prompt, str) else _read_turns(prompt, "prompt")
    if not turns or turns[-1].role != "assistant":
        role = repr(turns[-1].role) if turns else "nothing"
        raise InvalidInput(f"the completion must end with a message of the assistant, and ends with {role}")
    return Item(messages=(*before, *turns), finish_reason=finish_reason)


def _read_turns(value: object, name: str) -> tuple[Message, ...]:
    """Return messages; trainers omit `content` in turns that only call tools, and the wire format requires it."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = [{"content": None, **turn} if isinstance(turn, Mapping) else turn for turn in value]
    return read_messages(value, name)
