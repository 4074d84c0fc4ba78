"""Read the prompts of a policy: from rows of prompts, or from dialogues and rankings."""

from collections.abc import Iterable, Iterator

from assay_service.scoring.item import Message
from assay_training.records.plain import read_prompt
from assay_training.records.record import Dialogue, Dropped, Prompt, Ranking, Text, Understood, find_group
from assay_training.records.rows import Row


def read_prompts(source: str, rows: Iterable[Row]) -> Iterator[Prompt]:
    """Yield a prompt per row.

    Raises:
        RecordError: a prompt is missing or malformed.
    """
    for row in rows:
        messages = read_prompt(row)
        yield Prompt(source, find_group(messages[-1].content), messages)


def extract_prompts(
    records: Iterable[Ranking | Dialogue | Text | Prompt | Dropped | Understood],
) -> Iterator[Prompt | Dropped | Understood]:
    """Yield the prompts of records, each once.

    The prompt of a dialogue is everything before the assistant's last message. A record without a prompt is dropped.
    """
    # Preference sets repeat prompts, one row per pair; a policy should be asked each of them equally often.
    seen: set[tuple[Message, ...]] = set()
    for record in records:
        if isinstance(record, Dropped | Understood):
            yield record
            continue
        messages = _messages(record)
        if not messages:
            yield Dropped("no prompt")
        elif messages not in seen:
            seen.add(messages)
            yield Prompt(record.source, record.group, messages)


def _messages(record: Ranking | Dialogue | Text | Prompt) -> tuple[Message, ...]:
    if isinstance(record, Ranking):
        return record.prompt
    if isinstance(record, Text):
        return ()
    if isinstance(record, Prompt):
        return record.messages
    last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
    return record.messages[:last]
