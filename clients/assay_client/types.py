"""Define items and their scores, as frozen values.

Requests (`Message`, `Item`) check themselves when they are made. `_answers` makes results and checks that
every float is finite and every index is the position in the caller's own list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, get_args, overload

from assay_client.errors import InvalidInput, ItemFailed, ItemsFailed
from assay_client.provenance import Provenance

FinishReason: TypeAlias = Literal["stop", "length"]
Truncation: TypeAlias = Literal["error", "prompt_left"]

ITEM_KEYS = frozenset({"prompt", "messages", "completion", "finish_reason", "id"})
RAISE = object()  # the default of `ScoreResult.scores`, where None is a choice of the caller


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: the speaker, one of the roles that the signal's template knows.
        content: text, or the other forms of OpenAI's SDKs: None, or a list of parts. The service checks it per item.
        others: further fields of the turn, such as `name` or `tool_calls`, in wire form.

    Raises:
        InvalidInput: the role is not text.
    """

    role: str
    content: object
    others: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.role, str):
            raise InvalidInput("a message needs a `role`, which must be text")

    @classmethod
    def of(cls, value: object) -> "Message":
        """Return a message from its wire form, as OpenAI's SDKs write it; a `Message` is returned as it is.

        Raises:
            InvalidInput: the value has no `role`, or neither `content` nor `tool_calls`; or the role is not text.
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping) or "role" not in value or not ("content" in value or value.get("tool_calls")):
            raise InvalidInput("a message must be an object with `role` and `content`")
        others = tuple((str(key), field) for key, field in value.items() if key not in ("role", "content"))
        return cls(value["role"], value.get("content"), others)

    def to_wire(self) -> dict[str, object]:
        """Return the message in wire form."""
        return {"role": self.role, "content": self.content, **dict(self.others)}


Prompt: TypeAlias = str | Sequence[Message | Mapping[str, object]]
Completion: TypeAlias = Prompt


def read_messages(value: object, name: str) -> tuple[Message, ...]:
    """Return messages from a sequence of them or of their wire forms.

    Raises:
        InvalidInput: the value is not such a sequence; the message calls it `name`.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):  # a text is a sequence too
        raise InvalidInput(f"`{name}` must be {'text or ' * (name == 'prompt')}a list of messages")
    return tuple(Message.of(message) for message in value)


def read_completion_text(completion: object) -> str:
    """Return the text of a completion: text as it is, or the content of a list of one assistant message.

    Raises:
        InvalidInput: the completion has another form, or its message has fields that the text would lose.
    """
    if isinstance(completion, str):
        return completion
    messages = () if isinstance(completion, bytes) or not isinstance(completion, Sequence) else completion
    message = Message.of(messages[0]) if len(messages) == 1 else None
    if message is None or message.role != "assistant" or not isinstance(message.content, str):
        raise InvalidInput("`completion` must be text, or a list of exactly one assistant message")
    # SDKs write empty fields, such as `tool_calls: None`; only a field with a value would be lost.
    lost = [name for name, field in message.others if field not in (None, [], {}, "")]
    if lost:
        raise InvalidInput(f"`completion`: `{lost[0]}` of its message would be lost; send the item as `messages`")
    return message.content


def encode_prompt(prompt: object) -> str | list[dict[str, object]]:
    """Return a prompt in wire form: text, or a list of messages; raise InvalidInput if it is neither."""
    if isinstance(prompt, str):
        return prompt
    return [message.to_wire() for message in read_messages(prompt, "prompt")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One completion to score: `prompt` and `completion`, or `messages` whose last one is the assistant's.

    Attributes:
        prompt: text (one user turn) or messages; requires `completion`.
        completion: the text that is scored; a list of one assistant message becomes its content.
        messages: the whole conversation, instead of the two; the last message is scored.
        finish_reason: "stop" if generation ended, "length" if it was cut off, None for the server's default.
        id: the caller's name for the item, which is returned with its score.

    Raises:
        InvalidInput: the item has both forms or neither, or a field has the wrong type. The server checks the texts.
    """

    prompt: Prompt | None = None
    completion: Completion | None = None
    messages: Sequence[Message | Mapping[str, object]] | None = None
    finish_reason: FinishReason | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        pair = self.prompt is not None and self.completion is not None and self.messages is None
        chat = self.prompt is None and self.completion is None and self.messages is not None
        if not (pair or chat):
            raise InvalidInput("an item has exactly one of `prompt` with `completion`, or `messages`")
        if pair:
            object.__setattr__(self, "completion", read_completion_text(self.completion))
        if self.finish_reason is not None and self.finish_reason not in get_args(FinishReason):
            raise InvalidInput('`finish_reason` must be "stop" or "length"')
        if self.id is not None and not isinstance(self.id, str):
            raise InvalidInput("`id` must be text")
        for name in ("prompt", "messages"):
            value = getattr(self, name)
            if value is not None and not (name == "prompt" and isinstance(value, str)):
                # A tuple, so that nobody changes the list under a frozen item.
                object.__setattr__(self, name, read_messages(value, name))

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
            "finish_reason": self.finish_reason,
            "id": self.id,
        }
        return {key: value for key, value in row.items() if value is not None}


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
    """

    logit: float
    prob: float | None
    prompt_tokens: int
    completion_tokens: int
    truncated_tokens: int
    dropped_tokens: int
    control_tokens_as_text: int


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
