"""What is scored: a conversation whose last message is the completion."""

from dataclasses import dataclass
from typing import Literal

from assay_service.errors import ContentError

FinishReason = Literal["stop", "length"]
Truncation = Literal["error", "prompt_left"]


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one turn of a conversation.

    Attributes:
        role: whatever the signal's template knows.
        content: the text of the turn.
        fields: further texts of the turn by name, such as `name` or `reasoning_content`. An item is refused if the
            template does not print one of them.
    """

    role: str
    content: str
    fields: tuple[tuple[str, str], ...] = ()

    def texts(self) -> tuple[tuple[str, str], ...]:
        """Return every text that the template has to print, after the name of its field."""
        return (("content", self.content), *self.fields)

    def as_dict(self) -> dict[str, str]:
        """Return the message in the form of chat templates and of requests."""
        return {"role": self.role, "content": self.content, **dict(self.fields)}


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and its completion.

    Attributes:
        messages: the conversation; the last message is the assistant's and is the completion.
        finish_reason: "stop" if the completion is finished (its end of turn is rendered), "length" if generation was
            cut off (no end of turn is invented, and the score is read at the last token of the completion).

    Raises:
        ContentError: the last message is not the assistant's.
    """

    messages: tuple[Message, ...]
    finish_reason: FinishReason = "stop"

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role != "assistant":
            raise ContentError("the last message must be the assistant's", code="last_not_assistant")

    @classmethod
    def of(cls, prompt: str, completion: str, finish_reason: FinishReason = "stop") -> "Item":
        """An item with one user message as its prompt."""
        return cls((Message("user", prompt), Message("assistant", completion)), finish_reason)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the completion."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The text that is judged."""
        return self.messages[-1].content


# What must be scorable by every signal, or it does not start; readiness asks for the same.
PROBE = Item.of("ready?", "yes")
