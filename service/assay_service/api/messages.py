"""Turn the messages of a request, in the forms that OpenAI's SDKs write, into what is scored.

A fault in a message is its item's error, so that the other items of a request are scored.
"""

from collections.abc import Iterable, Mapping, Sequence

from assay_service.api.schemas import ChatMessage, RankCompletion, ScoreItem
from assay_service.errors import ContentError
from assay_service.scoring.item import Item, Message

_TEXT_PARTS = ("text", "input_text", "output_text")  # of chat completions, and of responses


def items_of(items: Iterable[ScoreItem]) -> list[Item | ContentError]:
    """Return both forms of the wire as items, or why one is none."""
    return [_item(item) for item in items]


def items_of_prompt(
    prompt: str | Sequence[ChatMessage], completions: Iterable[RankCompletion], name: str
) -> list[Item | ContentError]:
    """Return one item per completion of the prompt in the field `name`, or why it is none."""
    try:
        messages = _prompt(prompt, name)
    except ContentError as error:
        return [error for _ in completions]
    return [Item((*messages, Message("assistant", c.completion)), c.finish_reason) for c in completions]


def _item(item: ScoreItem) -> Item | ContentError:
    try:
        if item.messages is not None:
            prompt = _prompt(item.messages[:-1], "messages")
            return Item((*prompt, _completion(item.messages)), item.finish_reason)
        assert item.prompt is not None
        assert item.completion is not None
        return Item((*_prompt(item.prompt, "prompt"), Message("assistant", item.completion)), item.finish_reason)
    except ContentError as error:
        return error


def _prompt(prompt: str | Sequence[ChatMessage], name: str) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(_message(message, f"{name}[{index}]") for index, message in enumerate(prompt))


def _completion(messages: Sequence[ChatMessage]) -> Message:
    where = f"messages[{len(messages) - 1}]"
    if messages[-1].content is None:
        raise _invalid(f"{where}.content", "is null; there is no text to score")
    return _message(messages[-1], where)


def _message(message: ChatMessage, where: str) -> Message:
    """Return a message with all its texts.

    Fields that are null or empty are left out, as SDKs write every field. Texts are kept, and the renderer refuses
    those that the template does not print. Nothing else has a place in a rendered conversation.
    """
    fields = []
    for name, value in sorted((message.model_extra or {}).items()):
        if _is_empty(value):
            continue
        # The path of an error never quotes a name that is not plain.
        named = f"{where}.{name}" if name.isidentifier() and name.isascii() else where
        if not isinstance(value, str):
            raise _invalid(named, "is not text, so it cannot be scored; leave it out or write it into `content`")
        fields.append((name, _valid(value, named)))
    return Message(message.role, _content(message.content, f"{where}.content"), tuple(fields))


def _content(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return _valid(content, where)
    if not isinstance(content, list):
        raise _invalid(where, "is neither a text nor a list of parts")
    if len(content) != 1:
        # vLLM joins texts by line breaks, templates of transformers by nothing.
        raise _invalid(where, f"has {len(content)} parts, which servers join differently; send their texts as one")
    part = content[0]
    if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise _invalid(f"{where}[0]", "is not a text part; only text is scored")
    if not all(_is_empty(value) for name, value in part.items() if name not in ("type", "text")):
        raise _invalid(f"{where}[0]", "has more fields than `type` and `text`")
    return _valid(part["text"], f"{where}[0].text")


def _is_empty(value: object) -> bool:
    """Whether `value` is null, an empty text, or holds nothing else."""
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    if isinstance(value, list):
        return all(map(_is_empty, value))
    return value is None or value == ""


def _valid(text: str, where: str) -> str:
    """Return `text` if a tokenizer can encode it; JSON can carry half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(where, "is not valid Unicode: it holds a lone surrogate") from None
    return text


def _invalid(where: str, why: str) -> ContentError:
    return ContentError(f"{where} {why}", code="invalid_message", param=where)
