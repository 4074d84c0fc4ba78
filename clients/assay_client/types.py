"""Items that are scored and the scores of them, as frozen values.

Requests (`Message`, `Item`) check themselves when they are made. `_answers` makes answers and checks that
every float is finite and every index is the position in the caller's own list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, overload

from assay_client.errors import InvalidInput, ItemFailed, ItemsFailed

FinishReason: TypeAlias = Literal["stop", "length"]
Truncation: TypeAlias = Literal["error", "prompt_left"]

ITEM_KEYS = frozenset({"prompt", "messages", "completion", "finish_reason", "id"})
RAISE = object()  # the default of `ScoreResult.scores`


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is whatever the signal's template knows.

    Attributes:
        role: who speaks.
        content: text, or what OpenAI's SDKs write: None, or a list of parts. The service judges it, item by item.
        others: further fields of the turn, such as `name`, in the form that the wire has.

    Raises:
        InvalidInput: the role is not text.
    """

    role: str
    content: object
    others: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.role, str):
            raise InvalidInput("a message needs a `role`, which is text")

    @classmethod
    def of(cls, value: object) -> "Message":
        """Return a message from its wire form, as OpenAI's SDKs write it; a `Message` is returned as it is.

        Raises:
            InvalidInput: another shape.
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping) or not {"role", "content"} <= set(value):
            raise InvalidInput("a message is an object with `role` and `content`")
        others = tuple((str(key), field) for key, field in value.items() if key not in ("role", "content"))
        return cls(value["role"], value["content"], others)

    def to_wire(self) -> dict[str, object]:
        """The message as the wire has it."""
        return {"role": self.role, "content": self.content, **dict(self.others)}


Prompt: TypeAlias = str | Sequence[Message | Mapping[str, object]]
Completion: TypeAlias = Prompt


def as_messages(value: object, name: str) -> tuple[Message, ...]:
    """Messages from a sequence of them or of their wire forms.

    Raises:
        InvalidInput: another shape; `name` is what the error calls it.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidInput(f"`{name}` must be {'text or ' * (name == 'prompt')}a list of messages")
    return tuple(Message.of(message) for message in value)


def completion_text(completion: object) -> str:
    """Return the text of a completion: text as it is, or the content of a list of one assistant message.

    Raises:
        InvalidInput: another shape. A list of several messages has no one text.
    """
    if isinstance(completion, str):
        return completion
    messages = () if isinstance(completion, bytes) or not isinstance(completion, Sequence) else completion
    message = Message.of(messages[0]) if len(messages) == 1 else None
    if message is None or message.role != "assistant" or not isinstance(message.content, str):
        raise InvalidInput("`completion` must be text, or a list of exactly one assistant message")
    lost = [name for name, field in message.others if field not in (None, [], {}, "")]
    if lost:
        raise InvalidInput(f"`completion`: `{lost[0]}` of its message would be lost; send the item as `messages`")
    return message.content


def prompt_to_wire(prompt: object) -> str | list[dict[str, object]]:
    """A prompt as the wire has it: text, or a list of messages; raises InvalidInput if it is neither."""
    if isinstance(prompt, str):
        return prompt
    return [message.to_wire() for message in as_messages(prompt, "prompt")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One completion to score: `prompt` and `completion`, or `messages` whose last one is the assistant's.

    Attributes:
        prompt: text (one user turn) or messages; goes with `completion`.
        completion: the text that is judged; a list of one assistant message becomes its content.
        messages: the whole conversation instead; the last message is judged.
        finish_reason: "stop" if generation ended, "length" if it was cut off, None for the server's default.
        id: the caller's name for the item; comes back with its score.

    Raises:
        InvalidInput: both forms or neither, or a field of the wrong type. Texts are the server's to judge.
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
            object.__setattr__(self, "completion", completion_text(self.completion))
        if self.finish_reason is not None and self.finish_reason not in get_args(FinishReason):
            raise InvalidInput('`finish_reason` must be "stop" or "length"')
        if self.id is not None and not isinstance(self.id, str):
            raise InvalidInput("`id` must be text")
        for name in ("prompt", "messages"):
            value = getattr(self, name)
            if value is not None and not (name == "prompt" and isinstance(value, str)):
                # A tuple, so that nobody changes the list under a frozen item.
                object.__setattr__(self, name, as_messages(value, name))

    @classmethod
    def of(cls, value: object) -> "Item":
        """Return an item from an `Item`, a tuple, or a mapping in wire form.

        A tuple is `(prompt, completion)` or `(prompt, completion, finish_reason)`.

        Raises:
            InvalidInput: another shape, or keys that the wire does not know.
        """
        if isinstance(value, Item):
            return value
        if isinstance(value, tuple):
            if len(value) not in (2, 3):
                shape = "(prompt, completion) or (prompt, completion, finish_reason)"
                raise InvalidInput(f"an item as a tuple is {shape}, got {len(value)} values")
            return cls(prompt=value[0], completion=value[1], finish_reason=value[2] if len(value) == 3 else None)
        if not isinstance(value, Mapping):
            raise InvalidInput(f"an item is an Item, a tuple or an object, not {type(value).__name__}")
        unknown = sorted(str(key) for key in value if key not in ITEM_KEYS)
        if unknown:
            raise InvalidInput(f"unknown key `{unknown[0]}`; an item has {', '.join(sorted(ITEM_KEYS))}")
        return cls(**value)

    def to_wire(self) -> dict[str, object]:
        """The item as the wire has it; fields that are None are left out."""
        row: dict[str, object] = {
            "prompt": None if self.prompt is None else prompt_to_wire(self.prompt),
            "completion": self.completion,
            "messages": None if self.messages is None else prompt_to_wire(self.messages),
            "finish_reason": self.finish_reason,
            "id": self.id,
        }
        return {key: value for key, value in row.items() if value is not None}


@dataclass(frozen=True, slots=True)
class SignalValue:
    """What one signal says about one completion.

    Attributes:
        logit: the head's output; unbounded.
        prob: sigmoid of the logit, 0..1, for signals of kind "absolute"; None for "preference".
        prompt_tokens: tokens before the completion, after truncation.
        completion_tokens: tokens of the completion.
        truncated_tokens: tokens cut from the prompt's left; 0 unless `truncation="prompt_left"` was sent.
        dropped_tokens: tokens that the signal's template left out; 0 unless it declares `dropped_content: report`.
        control_tokens_as_text: control tokens of the messages that were read as plain characters; 0 unless the signal
            declares `control_tokens: text`.
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
    """Why one item has no score: the server's code, a sentence, the field, and if it may succeed later."""

    code: str
    message: str
    param: str | None
    retryable: bool


@dataclass(frozen=True, slots=True)
class Score:
    """A scored item: `index` in the caller's list, `score` on the logit scale, and each signal's part."""

    index: int
    id: str | None
    score: float
    signals: Mapping[str, SignalValue]


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """An item without a score; it never fails its neighbours."""

    index: int
    id: str | None
    error: ItemError

    def to_exception(self) -> ItemFailed:
        """The failure as an exception."""
        e = self.error
        return ItemFailed(e.message, index=self.index, id=self.id, code=e.code, param=e.param, retryable=e.retryable)


@dataclass(frozen=True, slots=True)
class SignalProvenance:
    """Which weights gave a signal; `adapter_sha256` is None where there is no adapter."""

    model: str
    revision: str
    adapter_sha256: str | None
    head_sha256: str
    template_sha256: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Blend:
    """The rule Σ w·logit; `name` is None if the server gives none; `standardise`: what is done to logits before."""

    name: str | None
    weights: Mapping[str, float]
    standardise: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """What decided the scores. Equal `fingerprint`: same text, same score. No `blend` in a comparison."""

    blend: Blend | None
    signals: Mapping[str, SignalProvenance]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Answers to `score`: `data[i]` is about item i; `model` is None when weights were sent."""

    data: tuple[Score | ScoreFailure, ...]
    model: str | None
    provenance: Provenance

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decided the scores except the texts; the same for all items."""
        return self.provenance.fingerprint

    @property
    def failures(self) -> tuple[ScoreFailure, ...]:
        """The items without a score, by index."""
        return tuple(row for row in self.data if isinstance(row, ScoreFailure))

    @overload
    def scores(self) -> list[float]: ...
    @overload
    def scores(self, *, missing: None) -> list[float | None]: ...
    def scores(self, *, missing: object = RAISE) -> list[float] | list[float | None]:
        """Return one finite float per item, in order.

        Args:
            missing: None puts None in the place of each item that failed. Nothing else is taken: no number can
                stand for a score that does not exist.

        Raises:
            ItemsFailed: an item has no score, and `missing` was not given.
            InvalidInput: `missing` is something else than None.
        """
        if missing is None:
            return [row.score if isinstance(row, Score) else None for row in self.data]
        if missing is not RAISE:
            raise InvalidInput(f"`missing` can only be None, not {missing!r}: a failure has no score")
        if self.failures:
            raise ItemsFailed(tuple(row.to_exception() for row in self.failures), len(self.data))
        return [row.score for row in self.data if isinstance(row, Score)]
