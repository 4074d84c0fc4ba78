r"""Read Assay's own formats, one per kind of record; `preferences.py` reads pairs.

| format | fields |
|---|---|
| `rankings` | `prompt`, `completions`, `ranks` (1 is best, equal ranks are ties) |
| `labels` | `prompt`, `completion`, `label` in 0..1 |
| `dialogues` | `messages` |
| `text` | `text` |
| `prompts` | `prompt` |

`prompt` is a text or a list of messages, each with `role` and `content`. A text in HH's turns
(`\n\nHuman: … \n\nAssistant:`) is read as messages. The optional `group` names the group of a row; without it, the
group is the first user message.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from assay_service.scoring.item import Item, Message
from assay_training.config.data import OWN_FIELDS
from assay_training.records.record import Dialogue, Labelled, Pair, Ranking, Text, explain_drop, find_group
from assay_training.records.rows import Row
from assay_training.records.turns import parse_prompt

ROLES = frozenset({"system", "user", "assistant", "tool"})
# Fields that would change the scored text or the loss, and that no reader supports: an error instead of a wrong model.
_UNSUPPORTED = frozenset(
    {"tools", "images", "image", "videos", "audio", "history", "chat_template_kwargs", "weight", "sample_weight"}
)
_LEARNED = ("weight", "train", "training", "train_on_turn")  # how much of a message is learned
_READ = frozenset({"role", "content", *_LEARNED})  # of a message
_LOST = ("tool_calls", "function_call", "reasoning_content", "thinking")  # parts of a message besides its content


def read_rankings(source: str, rows: Iterable[Row]) -> Iterator[Ranking]:
    """Yield a ranking of K completions per row.

    Raises:
        RecordError: a row is malformed, all completions are tied, or equal completions have different ranks.
    """
    for row in rows:
        prompt, texts, ranks = read_prompt(row), row.get("completions", list), row.get("ranks", list)
        if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise row.error("field 'completions' is not a list of two texts or more, none of them empty")
        if len(ranks) != len(texts) or not all(type(rank) is int and rank >= 1 for rank in ranks):
            raise row.error("field 'ranks' is not a whole number from 1 for every completion")
        if len(set(ranks)) == 1:
            raise row.error("field 'ranks': all completions are tied")
        beats = tuple(Pair(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b)
        ties = tuple((i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if i < j and a == b)
        if any(texts[pair.better] == texts[pair.worse] for pair in beats):
            raise row.error("field 'completions' holds a text twice, at different ranks")
        yield Ranking(source, read_row_group(row, prompt), prompt, tuple(texts), beats, ties)


def read_labelled(source: str, rows: Iterable[Row]) -> Iterator[Labelled]:
    """Yield a labelled item per row.

    Raises:
        RecordError: a row is malformed, or a label is not in 0..1.
    """
    for row in rows:
        prompt, label = read_prompt(row), row.get("label", float)
        if not (math.isfinite(label) and 0 <= label <= 1):
            raise row.error(f"field 'label' is {label}, not in 0..1")
        item = Item((*prompt, Message("assistant", row.text("completion"))))
        yield Labelled(source, read_row_group(row, prompt), item, label)


def read_dialogues(source: str, rows: Iterable[Row]) -> Iterator[Dialogue]:
    """Yield a dialogue per row.

    Raises:
        RecordError: a row is malformed, has no message of the assistant, or has an empty one.
    """
    for row in rows:
        messages = read_messages(row, "messages", row.get("messages", list))
        if not any(message.role == "assistant" for message in messages):
            raise row.error("field 'messages' has no message of the assistant")
        if not all(message.content.strip() for message in messages if message.role == "assistant"):
            raise row.error("field 'messages' has an empty message of the assistant")
        yield Dialogue(source, read_row_group(row, messages), messages)


def read_texts(source: str, rows: Iterable[Row]) -> Iterator[Text]:
    """Yield a text per row; equal texts are one group.

    Raises:
        RecordError: a text is missing or blank.
    """
    for row in rows:
        value = row.text("text")
        yield Text(source, hashlib.sha256(value.encode()).hexdigest(), value)


def say_ignored(row: Row, format_: str, said: Counter[str]) -> None:
    """Count the fields of a row that its format does not read.

    Args:
        row: row of one of Assay's own formats.
        format_: name of the format.
        said: counter of phrases, to which the ignored fields are added.

    Raises:
        RecordError: an unsupported field would change the training.
    """
    for name, value in row.fields.items():
        if name in OWN_FIELDS[format_] or value is None or value in ([], {}, ""):
            continue
        if name in _UNSUPPORTED:
            raise row.error(
                f"field {name!r} is not supported and would change the training; drop it with {explain_drop(name)}"
            )
        said[f"ignored: {name}"] += 1
    read = {name: row.fields[name] for name in OWN_FIELDS[format_] if name in row.fields}
    said.update(f"ignored in messages: {key}" for key in sorted(set(_find_unread_keys(list(read.values())))))


def _find_unread_keys(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield the keys of messages, in lists of any depth, that have a value and that no reader reads."""
    if isinstance(value, list):
        for member in value:
            yield from _find_unread_keys(member)
    elif isinstance(value, dict):
        yield from (key for key, content in value.items() if key not in _READ and content not in (None, [], {}, ""))


def read_prompt(row: Row) -> tuple[Message, ...]:
    """Return the messages before the completion.

    Raises:
        RecordError: the field `prompt` is neither a text nor a list of messages.
    """
    prompt = row.fields.get("prompt")
    if isinstance(prompt, str):
        return parse_prompt(prompt) or (Message("user", row.text("prompt")),)
    if isinstance(prompt, list) and prompt:
        return read_messages(row, "prompt", prompt)
    raise row.error(f"field {row.named('prompt')} is neither a text nor a list of messages with 'role' and 'content'")


def read_messages(row: Row, field: str, messages: Sequence[Any]) -> tuple[Message, ...]:
    """Return messages from their JSON form.

    Raises:
        RecordError: a message has no `role` or `content`, an unknown role, or a part that would be lost.
    """
    if not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    ):
        raise row.error(f"field {row.named(field)} is not a list of messages with 'role' and 'content', both texts")
    lost = sorted({key for message in messages for key in _LOST if message.get(key)})
    if lost:
        raise row.error(f"field {row.named(field)}: {lost[0]!r} of a message would be lost; only its content is read")
    skipped = next((key for message in messages for key in _LEARNED if message.get(key) not in (None, 1)), None)
    if skipped is not None:
        raise row.error(
            f"field {row.named(field)}: {skipped!r} of a message says that it is not learned, or less than others, "
            "which is not supported; end the row before that message, or remove the key"
        )
    unknown = {message["role"] for message in messages} - ROLES
    if unknown:
        raise row.error(f"field {row.named(field)}: role {min(unknown)!r} is not one of {', '.join(sorted(ROLES))}")
    return tuple(Message(message["role"], message["content"]) for message in messages)


def read_row_group(row: Row, messages: Sequence[Message]) -> str:
    """Return the group of a row: its field `group`, else the first user message."""
    if row.fields.get("group") is not None:
        return row.get("group", str)
    # Not the first message: a system prompt is the same for a whole data set.
    return find_group(next((message for message in messages if message.role == "user"), messages[0]).content)
