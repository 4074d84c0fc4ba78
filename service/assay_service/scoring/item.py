"""Define what is scored: a conversation whose last message is the completion."""

from dataclasses import dataclass
from typing import Literal

from assay_service.errors import ContentError

FinishReason = Literal["stop", "length"]
Truncation = Literal["error", "prompt_left"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: role that the signal's template knows.
        content: text of the turn.
        fields: further texts of the turn by name, such as `name` or `reasoning_content`. An item is refused if the
            template does not print one of them.
    """

    role: str
    content: str
    fields: tuple[tuple[str, str], ...] = ()

    def texts(self) -> tuple[tuple[str, str], ...]:
        """Return every text that the template has to print, with the name of its field."""
        return (("content", self.content), *self.fields)

    def as_dict(self) -> dict[str, str]:
        """Return the message in the form of chat templates and of requests."""
        return {"role": self.role, "content": self.content, **dict(self.fields)}


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and its completion.

    Attributes:
        messages: conversation, whose last message is the assistant's and is the completion.
        finish_reason: "stop" if the completion is finished, so that its end of turn is rendered. "length" if generation
            was cut off: no end of turn is added, and the score is read at the last token of the completion.

    Raises:
        ContentError: the last message is not the assistant's.
    """

    messages: tuple[Message, ...]
    finish_reason: FinishReason = "stop"

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role != "assistant":
            raise ContentError(
                "the last message must be the assistant's: it is the completion to score", code="last_not_assistant"
            )

    @classmethod
    def of(cls, prompt: str, completion: str, finish_reason: FinishReason = "stop") -> "Item":
        """Return an item with one user message as its prompt."""
        return cls((Message("user", prompt), Message("assistant", completion)), finish_reason)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Return all messages before the completion."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """Return the text that is scored."""
        return self.messages[-1].content


# Every signal must be able to score this item, or the service does not start. The readiness check scores it too.
PROBE = Item.of("ready?", "yes")
