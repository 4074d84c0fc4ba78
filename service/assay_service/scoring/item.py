"""Define what is scored: a conversation whose last message is the completion."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from assay_service.errors import ContentError
from assay_service.scoring.tool_calls import Leaf, ToolCall

FinishReason = Literal["stop", "length"]
Truncation = Literal["error", "prompt_left"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: role that the signal's template knows.
        content: text of the turn; "" if it has `parts`.
        fields: further texts of the turn by name, such as `name` or `reasoning_content`. An item is refused if the
            template does not print one of them.
        parts: texts of the parts, if the content is a list of several.
        tool_calls: calls of functions, all of whose texts and values the template has to print.
        links: fields that the template gets but need not print, because the order of the messages says the same.
    """

    role: str
    content: str
    fields: tuple[tuple[str, str], ...] = ()
    parts: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Return True if the message has texts only: content and fields."""
        return not (self.parts or self.tool_calls or self.links)

    def list_leaves(self) -> tuple[Leaf, ...]:
        """Return every text and value that the template has to print, in the order of `replace_texts`."""
        leaves = [Leaf(f"content[{number}].text", text) for number, text in enumerate(self.parts)]
        if self._has_content:
            leaves.append(Leaf("content", self.content))
        leaves += (Leaf(name, text) for name, text in self.fields)
        for number, call in enumerate(self.tool_calls):
            leaves += call.list_leaves(f"tool_calls[{number}]")
        return tuple(leaves)

    @property
    def _has_content(self) -> bool:
        # Beside tool calls, a message without text has none that the template could print.
        return not self.parts and (self.content != "" or not self.tool_calls)

    def texts(self) -> tuple[tuple[str, str], ...]:
        """Return every text that the template has to print, with the name of its field."""
        return tuple((leaf.field, leaf.text) for leaf in self.list_leaves())

    def list_links(self) -> tuple[str, ...]:
        """Return the texts that only refer to other messages: ids of calls, and `links`."""
        ids = tuple(call.id for call in self.tool_calls if call.id is not None)
        return (*ids, *(text for _, text in self.links))

    def replace_texts(self, texts: Iterable[str]) -> "Message":
        """Return the message with other texts, one for each leaf."""
        rest = iter(texts)
        return replace(
            self,
            parts=tuple(next(rest) for _ in self.parts),
            content=next(rest) if self._has_content else "",
            fields=tuple((name, next(rest)) for name, _ in self.fields),
            tool_calls=tuple(call.replace_leaves(rest) for call in self.tool_calls),
        )

    def replace_links(self, links: Mapping[str, str]) -> "Message":
        """Return the message with another text for each of `list_links`."""
        calls = (c if c.id is None else replace(c, id=links[c.id]) for c in self.tool_calls)
        return replace(self, tool_calls=tuple(calls), links=tuple((name, links[text]) for name, text in self.links))

    def as_dict(self) -> dict[str, Any]:
        """Return the message in the form of chat templates and of requests."""
        content = [{"type": "text", "text": text} for text in self.parts] or self.content
        calls = {"tool_calls": [call.as_dict() for call in self.tool_calls]} if self.tool_calls else {}
        return {"role": self.role, "content": content, **dict(self.fields), **dict(self.links), **calls}


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

    def replace_prompt(self, text: str) -> "Item":
        """Return the item with one user message in place of its prompt; an item without a prompt stays as it is."""
        return replace(self, messages=(Message("user", text), self.messages[-1])) if self.prompt else self

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
