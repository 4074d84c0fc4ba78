"""Define messages, and read prompts and completions in every form that OpenAI's SDKs and trainers write them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from assay_client.errors import InvalidInput


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
