"""Define items and their scores, as frozen values.

Items check themselves when they are made. `_answers` makes results and checks that every float is
finite and every index is the position in the caller's own list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, get_args, overload

from assay_client.errors import InvalidInput, ItemFailed, ItemsFailed
from assay_client.messages import Completion, Message, Prompt, encode_prompt, read_completion_text, read_messages
from assay_client.provenance import Provenance

FinishReason: TypeAlias = Literal["stop", "length"]
Truncation: TypeAlias = Literal["error", "prompt_left"]

ID_KEYS = ("prompt_ids", "completion_ids")
ITEM_KEYS = frozenset({"prompt", "messages", "completion", *ID_KEYS, "finish_reason", "id"})
RAISE = object()  # the default of `ScoreResult.scores`, where None is a choice of the caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One completion to score: `prompt` and `completion`, or `messages`, or the token ids of both texts.

    Attributes:
        prompt: text (one user turn) or messages; requires `completion`.
        completion: the text that is scored; a list of one assistant message becomes its content.
        messages: the whole conversation, instead of the two; the last message is the assistant's, and is scored.
        prompt_ids: the token ids of the rendered prompt; requires `completion_ids`. The call names their tokenizer.
        completion_ids: the token ids of the completion, special tokens included, which is scored.
        finish_reason: "stop" if generation ended, "length" if it was cut off, None for the server's default. With token
            ids the server reads it from the last one.
        id: the caller's name for the item, which is returned with its score.

    Raises:
        InvalidInput: the item does not have exactly one form, or a field has a wrong type. The server checks the texts.
    """

    prompt: Prompt | None = None
    completion: Completion | None = None
    messages: Sequence[Message | Mapping[str, object]] | None = None
    prompt_ids: Sequence[int] | None = None
    completion_ids: Sequence[int] | None = None
    finish_reason: FinishReason | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        forms = ((self.prompt, self.completion), (self.messages,), (self.prompt_ids, self.completion_ids))
        given = [[part is not None for part in form] for form in forms]
        if sum(map(any, given)) != 1 or not any(map(all, given)):
            raise InvalidInput(
                "an item has exactly one of `prompt` with `completion`, or `messages`, or `prompt_ids` with "
                "`completion_ids`"
            )
        if self.completion is not None:
            object.__setattr__(self, "completion", read_completion_text(self.completion))
        if self.prompt_ids is not None and self.finish_reason is not None:
            raise InvalidInput("`finish_reason` is read from the last of `completion_ids`; remove it")
        if self.finish_reason is not None and self.finish_reason not in get_args(FinishReason):
            raise InvalidInput('`finish_reason` must be "stop" or "length"')
        if self.id is not None and not isinstance(self.id, str):
            raise InvalidInput("`id` must be text")
        for name in ("prompt", "messages"):
            value = getattr(self, name)
            if value is not None and not (name == "prompt" and isinstance(value, str)):
                # A tuple, so that nobody changes the list under a frozen item.
                object.__setattr__(self, name, read_messages(value, name))
        for name in ID_KEYS:
            if (ids := getattr(self, name)) is not None:
                object.__setattr__(self, name, _read_ids(ids, name))

    @classmethod
    def of(cls, value: object) -> "Item":
        """Return an item from an `Item`, a tuple, or a mapping in wire form.

        A tuple is `(prompt, completion)` or `(prompt, completion, finish_reason)`.

        Raises:
            InvalidInput: the value has another form, or an object has a key that the wire format does not have.
        """
        if isinstance(value, Item):
            return value
        if isinstance(value, tuple):
            if len(value) not in (2, 3):
                shape = "(prompt, completion) or (prompt, completion, finish_reason)"
                raise InvalidInput(f"an item as a tuple must be {shape}, got {len(value)} values")
            return cls(prompt=value[0], completion=value[1], finish_reason=value[2] if len(value) == 3 else None)
        if not isinstance(value, Mapping):
            raise InvalidInput(f"an item must be an Item, a tuple or an object, not {type(value).__name__}")
        unknown = sorted(str(key) for key in value if key not in ITEM_KEYS)
        if unknown:
            raise InvalidInput(f"unknown key `{unknown[0]}`; the keys of an item are {', '.join(sorted(ITEM_KEYS))}")
        return cls(**value)

    def to_wire(self) -> dict[str, object]:
        """Return the item in wire form; fields that are None are omitted."""
        row: dict[str, object] = {
            "prompt": None if self.prompt is None else encode_prompt(self.prompt),
            "completion": self.completion,
            "messages": None if self.messages is None else encode_prompt(self.messages),
            "prompt_ids": self.prompt_ids,
            "completion_ids": self.completion_ids,
            "finish_reason": self.finish_reason,
            "id": self.id,
        }
        return {key: value for key, value in row.items() if value is not None}


def _read_ids(ids: object, name: str) -> tuple[int, ...]:
    """Return token ids as a tuple; raise InvalidInput, which names the field and the place, if one is not an id."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise InvalidInput(f"`{name}` must be a list of token ids, not {type(ids).__name__}")
    for place, token in enumerate(ids):
        # A bool is an int in Python, and is not one on the wire.
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise InvalidInput(f"`{name}[{place}]` must be a whole number of at least 0, not {token!r}")
    return tuple(ids)


@dataclass(frozen=True, slots=True)
class StepValue:
    """The value of one step of a completion.

    Attributes:
        index: the number of the step, from 0.
        token: the index of the token that was read, in the ids that `render` shows.
        logit: the output of the head.
        prob: the sigmoid of the logit, 0..1, for signals of kind "absolute"; None for "preference".
    """

    index: int
    token: int
    logit: float
    prob: float | None


@dataclass(frozen=True, slots=True)
class SignalValue:
    """The value of one signal for one completion.

    Attributes:
        logit: the output of the head, which is unbounded.
        prob: the sigmoid of the logit, 0..1, for signals of kind "absolute"; None for "preference".
        prompt_tokens: the number of tokens before the completion, after truncation.
        completion_tokens: the number of tokens of the completion.
        truncated_tokens: the number of tokens cut from the prompt's left; 0 unless `truncation="prompt_left"` was sent.
        dropped_tokens: the number of tokens that the template does not print; 0 unless `dropped_content: report`.
        control_tokens_as_text: the number of control tokens in the messages that were read as plain characters; 0
            unless the signal declares `control_tokens: text`.
        steps: the values of the finished steps, of which `logit` is the aggregate; None unless the signal scores steps.
        std: the standard deviation of the distribution that the head predicts; None unless it predicts one.
    """

    logit: float
    prob: float | None
    prompt_tokens: int
    completion_tokens: int
    truncated_tokens: int
    dropped_tokens: int
    control_tokens_as_text: int
    steps: tuple[StepValue, ...] | None = None
    std: float | None = None


@dataclass(frozen=True, slots=True)
class ItemError:
    """The reason why one item has no score: code, sentence, field, and whether it may succeed later."""

    code: str
    message: str
    param: str | None
    retryable: bool


@dataclass(frozen=True, slots=True)
class Score:
    """A scored item: its `index` in the caller's list, its `score` on the logit scale, and each signal's value."""

    index: int
    id: str | None
    score: float
    signals: Mapping[str, SignalValue]


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """An item without a score, and the `X-Request-ID` of its request; the other items are scored all the same."""

    index: int
    id: str | None
    error: ItemError
    request_id: str | None = None

    def to_exception(self) -> ItemFailed:
        """Return the failure as an exception."""
        return ItemFailed(index=self.index, id=self.id, request_id=self.request_id, **asdict(self.error))


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The result of `score`: `data[i]` is about item i; `model` is None if weights were sent."""

    data: tuple[Score | ScoreFailure, ...]
    model: str | None
    provenance: Provenance

    @property
    def fingerprint(self) -> str:
        """Return the hash of everything that decided the scores except the texts; it is the same for all items."""
        return self.provenance.fingerprint

    @property
    def failures(self) -> tuple[ScoreFailure, ...]:
        """Return the items without a score, sorted by index."""
        return tuple(row for row in self.data if isinstance(row, ScoreFailure))

    @overload
    def scores(self) -> list[float]: ...
    @overload
    def scores(self, *, missing: None) -> list[float | None]: ...
    def scores(self, *, missing: object = RAISE) -> list[float] | list[float | None]:
        """Return one finite float per item, in order.

        Args:
            missing: None, which puts None in the place of each failed item. No number can stand for a missing score.

        Raises:
            ItemsFailed: an item has no score, and `missing` was not given.
            InvalidInput: `missing` is not None.
        """
        if missing is None:
            return [row.score if isinstance(row, Score) else None for row in self.data]
        if missing is not RAISE:
            raise InvalidInput(f"`missing` can only be None, not {missing!r}: an item that failed has no score")
        if self.failures:
            raise ItemsFailed(tuple(row.to_exception() for row in self.failures), len(self.data))
        return [row.score for row in self.data if isinstance(row, Score)]
