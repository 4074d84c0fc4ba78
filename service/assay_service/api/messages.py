"""Turn the messages of a request, in the forms that OpenAI's SDKs write, into items that can be scored.

A fault in a message becomes an error of its item, so that the other items of the request are scored.
"""

from collections.abc import Iterable, Mapping, Sequence

from assay_service.api.schemas import ChatMessage, RankCompletion, ScoreItem
from assay_service.api.tool_calls import check_unicode, find_links, is_empty, make_error, read_tool_calls
from assay_service.errors import ContentError
from assay_service.scoring.item import Item, Message
from assay_service.scoring.tool_calls import ToolCall

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
        if not is_empty(item.tools):
            # Templates print definitions in forms of their own, which nothing here could compare with them.
            raise make_error("tools", "are not rendered; write the definitions into the system message")
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
    return find_links([_build_message(message, f"{name}[{index}]") for index, message in enumerate(prompt)])


def _build_completion(messages: Sequence[ChatMessage]) -> Message:
    where = f"messages[{len(messages) - 1}]"
    completion = _build_message(messages[-1], where)
    if messages[-1].content is None and not completion.tool_calls:
        raise make_error(f"{where}.content", "is null, so it holds no text to score")
    if completion.parts:
        raise make_error(f"{where}.content", f"has {len(completion.parts)} parts; a completion is one text")
    return completion


def _build_message(message: ChatMessage, where: str) -> Message:
    """Build a message with all its texts.

    Fields that are null or empty are skipped, because SDKs write every field. Texts and tool calls are kept, and the
    renderer refuses those that the template does not print. Values of any other type are errors.
    """
    fields: list[tuple[str, str]] = []
    calls: tuple[ToolCall, ...] = ()
    for name, value in sorted((message.model_extra or {}).items()):
        if is_empty(value):
            continue
        # The path of an error never quotes a name that is not plain.
        named = f"{where}.{name}" if name.isidentifier() and name.isascii() else where
        if name == "tool_calls":
            calls = read_tool_calls(value, named)
        elif isinstance(value, str):
            fields.append((name, check_unicode(value, named)))
        else:
            raise make_error(named, "is not a text, so it cannot be scored; remove it or write it into `content`")
    texts = _read_content(message.content, f"{where}.content")
    parts = texts if len(texts) > 1 else ()
    return Message(message.role, "" if parts else "".join(texts), tuple(fields), parts, calls)


def _read_content(content: object, where: str) -> tuple[str, ...]:
    """Return the text of a content, or the texts of its parts."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (check_unicode(content, where),)
    if not isinstance(content, list):
        raise make_error(where, "is neither a text nor a list of parts")
    if not content:
        raise make_error(where, "has no parts; send a text")
    return tuple(_read_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _read_part(part: object, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise make_error(where, "is not a text part; only text is scored")
    if not all(is_empty(value) for name, value in part.items() if name not in ("type", "text")):
        raise make_error(where, "has more fields than `type` and `text`")
    return check_unicode(part["text"], f"{where}.text")
