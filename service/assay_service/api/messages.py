"""Turn the messages of a request, in the forms that OpenAI's SDKs write, into items that can be scored.

A fault in a message becomes an error of its item, so that the other items of the request are scored.
"""

from collections.abc import Iterable, Mapping, Sequence

from assay_service.api.schemas import ChatMessage, RankCompletion, ScoreItem
from assay_service.errors import ContentError
from assay_service.scoring.item import Item, Message

# The first type is that of OpenAI's chat completions API, the others are those of its responses API.
_TEXT_PARTS = ("text", "input_text", "output_text")


def build_items(items: Iterable[ScoreItem]) -> list[Item | ContentError]:
    """Build the item of each entry of a request, or the error for which an entry has none."""
    return [_build_item(item) for item in items]


def build_completion_items(
    prompt: str | Sequence[ChatMessage], completions: Iterable[RankCompletion], name: str
) -> list[Item | ContentError]:
    """Build one item for each completion of a prompt, or the error for which it has none.

    Args:
        prompt: the prompt, as a text or as messages.
        completions: the completions of the prompt.
        name: the field of the request that holds the prompt; errors begin with it.
    """
    try:
        messages = _build_prompt(prompt, name)
    except ContentError as error:
        return [error for _ in completions]
    return [Item((*messages, Message("assistant", c.completion)), c.finish_reason) for c in completions]


def _build_item(item: ScoreItem) -> Item | ContentError:
    try:
        if item.messages is not None:
            prompt = _build_prompt(item.messages[:-1], "messages")
            return Item((*prompt, _build_completion(item.messages)), item.finish_reason)
        assert item.prompt is not None
        assert item.completion is not None
        return Item((*_build_prompt(item.prompt, "prompt"), Message("assistant", item.completion)), item.finish_reason)
    except ContentError as error:
        return error


def _build_prompt(prompt: str | Sequence[ChatMessage], name: str) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(_build_message(message, f"{name}[{index}]") for index, message in enumerate(prompt))


def _build_completion(messages: Sequence[ChatMessage]) -> Message:
    where = f"messages[{len(messages) - 1}]"
    if messages[-1].content is None:
        raise _make_error(f"{where}.content", "is null, so it holds no text to score")
    return _build_message(messages[-1], where)


def _build_message(message: ChatMessage, where: str) -> Message:
    """Build a message with all its texts.

    Fields that are null or empty are skipped, because SDKs write every field. Texts are kept, and the renderer refuses
    those that the template does not print. Values of any other type cannot be rendered, so they are errors.
    """
    fields = []
    for name, value in sorted((message.model_extra or {}).items()):
        if _is_empty(value):
            continue
        # The path of an error never quotes a name that is not plain.
        named = f"{where}.{name}" if name.isidentifier() and name.isascii() else where
        if not isinstance(value, str):
            raise _make_error(named, "is not a text, so it cannot be scored; remove it or write it into `content`")
        fields.append((name, _check_unicode(value, named)))
    return Message(message.role, _read_content(message.content, f"{where}.content"), tuple(fields))


def _read_content(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return _check_unicode(content, where)
    if not isinstance(content, list):
        raise _make_error(where, "is neither a text nor a list of parts")
    if len(content) != 1:
        # vLLM joins parts by line breaks, templates of transformers without any separator.
        raise _make_error(where, f"has {len(content)} parts, which servers join differently; send their texts as one")
    part = content[0]
    if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise _make_error(f"{where}[0]", "is not a text part; only text is scored")
    if not all(_is_empty(value) for name, value in part.items() if name not in ("type", "text")):
        raise _make_error(f"{where}[0]", "has more fields than `type` and `text`")
    return _check_unicode(part["text"], f"{where}[0].text")


def _is_empty(value: object) -> bool:
    """Return True if `value` is null, an empty text, or a collection of nothing else."""
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    if isinstance(value, list):
        return all(map(_is_empty, value))
    return value is None or value == ""


def _check_unicode(text: str, where: str) -> str:
    """Return `text` if a tokenizer can encode it; JSON can carry half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _make_error(where, "is not valid Unicode; it holds a lone surrogate") from None
    return text


def _make_error(where: str, why: str) -> ContentError:
    return ContentError(f"{where} {why}", code="invalid_message", param=where)
