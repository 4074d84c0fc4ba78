"""Read the format `preferences`: preference data in the shapes in which they are published.

| shape | `prompt` | `chosen`, `rejected` |
|---|---|---|
| texts | a text, HH's turns as text (full-hh-rlhf), or messages | texts |
| messages, explicit prompt (TRL) | a text, or messages | messages that begin with the assistant |
| messages, implicit prompt (TRL, Skywork) | none | conversations that differ in their last message |
| messages and prompt (UltraFeedback) | a text or messages that the conversations begin with | the same |

`chosen` and `rejected` may each be a list of several completions (RewardBench 2); every chosen completion beats every
rejected one. TRL's shapes: https://huggingface.co/docs/trl/dataset_formats#preference
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from assay_service.scoring.item import Message
from assay_training.config.data import Source
from assay_training.records.gaps import Gaps, read_gaps
from assay_training.records.plain import read_messages, read_prompt, read_row_group, say_ignored
from assay_training.records.record import Dropped, Pair, Ranking, Understood
from assay_training.records.rows import Row
from assay_training.records.turns import START, parse_prompt

_SHAPES = "a text, a list of messages with 'role' and 'content', or a list of several of these"
_HH = "HH dialogue"


@dataclass(frozen=True, slots=True)
class _Replies:
    """The field `chosen` or `rejected` of a row.

    Attributes:
        shape: shape of the field, for messages: `text`, `messages`, `list of texts` or `list of conversations`.
        conversations: messages of each completion; a text is a single message of the assistant.
    """

    shape: str
    conversations: list[tuple[Message, ...]]

    @property
    def texts(self) -> bool:
        """Return whether the completions are texts."""
        return "text" in self.shape


def read_rankings(source: Source, rows: Iterable[Row]) -> Iterator[Ranking | Dropped | Understood]:
    """Yield a ranking per row, preceded by its dropped pairs, and at the end how the fields were read.

    Published sets have faulty rows. Empty completions, pairs of equal completions and pairs that the ratings contradict
    are dropped. So are rows whose conversations differ before the last message, or do not end with the assistant.

    Raises:
        RecordError: a field is missing, has another shape or is not supported; the message names file, row and field.
    """
    count, said = 0, Counter[str]()
    for row in rows:
        count += 1
        say_ignored(row, "preferences", said)
        chosen, rejected = _read_replies(row, "chosen"), _read_replies(row, "rejected")
        said.update(f"{name} from {row.named(name)}: {field.shape}" for name, field in _name_both(chosen, rejected))
        prompt = _read_prompt(row, chosen, rejected, said)
        if isinstance(prompt, Dropped):
            yield prompt
            continue
        better, worse = _read_last(row, chosen), _read_last(row, rejected)
        gaps = read_gaps(row, source.largest_gap, (len(better), len(worse)), said)
        yield from _compare(Ranking(source.name, read_row_group(row, prompt), prompt, (), ()), better, worse, gaps)
    yield Understood(count, said)


def _compare(
    ranking: Ranking, chosen: Sequence[str], rejected: Sequence[str], gaps: Gaps
) -> Iterator[Ranking | Dropped]:
    """Yield the ranking of the completions, preceded by its dropped pairs."""
    texts, pairs = (*chosen, *rejected), []
    # Counted once for each completion, not for each of its pairs.
    yield from [Dropped("empty completion")] * sum(not text.strip() for text in texts)
    for i, better in enumerate(chosen):
        for j, worse in enumerate(rejected):
            gap = gaps(i, j)
            if not (better.strip() and worse.strip()):
                continue
            if better == worse:
                yield Dropped("chosen and rejected are equal")
            elif gap is not None and gap < 0:
                yield Dropped("the ratings favor rejected")
            else:
                pairs.append(Pair(i, len(chosen) + j, gap))
    # A completion without a pair is dropped from the ranking: nothing is known about it.
    kept = sorted({index for pair in pairs for index in (pair.better, pair.worse)})
    place = {old: new for new, old in enumerate(kept)}
    if pairs:
        yield Ranking(
            ranking.source,
            ranking.group,
            ranking.prompt,
            tuple(texts[index] for index in kept),
            tuple(Pair(place[pair.better], place[pair.worse], pair.gap) for pair in pairs),
        )


def _name_both(chosen: _Replies, rejected: _Replies) -> Iterator[tuple[str, _Replies]]:
    yield "chosen", chosen
    yield "rejected", rejected


def _read_replies(row: Row, field: str) -> _Replies:
    value = row.fields.get(field)
    if isinstance(value, str):
        return _Replies("text", [(Message("assistant", value),)])
    given = value if isinstance(value, list) else []
    if not any(isinstance(one, dict) for one in given):  # a null stands for a missing completion, never for a message
        given = [one for one in given if one is not None]
    if given and all(isinstance(one, str) for one in given):
        return _Replies("list of texts", [(Message("assistant", one),) for one in given])
    if given and all(isinstance(one, list) and one for one in given):
        return _Replies("list of conversations", [read_messages(row, field, one) for one in given])
    if given and all(isinstance(one, dict) for one in given):
        return _Replies("messages", [read_messages(row, field, given)])
    raise row.error(f"field {row.named(field)} is {_describe_shape(value)}, not {_SHAPES}")


def _read_last(row: Row, replies: _Replies) -> list[str]:
    """Return the last message of each conversation, without the space between `Assistant:` and an HH completion."""
    texts = [conversation[-1].content for conversation in replies.conversations]
    return [text.strip() for text in texts] if _find_kind(row) == _HH else texts


def _describe_shape(value: Any) -> str:  # noqa: ANN401 - JSON
    if value is None:
        return "missing"
    if isinstance(value, list) and None in value:
        return "a list with a null in it"
    return "an empty list" if value == [] else f"of another shape ({type(value).__name__})"


def _read_prompt(row: Row, chosen: _Replies, rejected: _Replies, said: Counter[str]) -> tuple[Message, ...] | Dropped:
    """Return the messages before the completions: the prompt, the common beginning, or both."""
    if chosen.texts != rejected.texts:
        raise row.error(f"fields 'chosen' and 'rejected' have different shapes: {chosen.shape}, {rejected.shape}")
    given = read_prompt(row) if row.fields.get("prompt") not in (None, []) else None
    conversations = [*chosen.conversations, *rejected.conversations]
    if any(conversation[-1].role != "assistant" for conversation in conversations):
        return Dropped("does not end with the assistant")
    _check_repeated_prompt(row, chosen, rejected, said)
    before = conversations[0][:-1]
    if any(conversation[:-1] != before for conversation in conversations):
        return Dropped("chosen and rejected differ before the last message")
    if not before and given is None:
        # HH's texts hold the prompt and the completion in one field.
        hint = "; use `format: hh`" if conversations[0][-1].content.startswith(START) else ""
        raise row.error(f"field {row.named('prompt')} is missing, and 'chosen' has completions without a prompt{hint}")
    if given is not None and conversations[0][0].role == "assistant":  # the conversations continue the prompt
        prompt = (*given, *before)
        said[f"prompt from {row.named('prompt')}: {_find_kind(row)}"] += 1
    else:
        prompt = before
        said["prompt from the common beginning of 'chosen' and 'rejected'"] += 1
        if given is not None and not _begin_alike(before, given, whole=_find_kind(row) != "text"):
            raise row.error(f"field {row.named('prompt')} is not the beginning of 'chosen' and 'rejected'")
    return _add_system(row, prompt, said)


def _check_repeated_prompt(row: Row, chosen: _Replies, rejected: _Replies, said: Counter[str]) -> None:
    """Count completions that begin with the prompt, which is then read twice.

    Raises:
        RecordError: a completion is a whole HH dialogue, although the row has a prompt.
    """
    prompt = row.fields.get("prompt")
    if not (chosen.texts and isinstance(prompt, str) and prompt.strip()):
        return
    texts = [conversation[-1].content for conversation in (*chosen.conversations, *rejected.conversations)]
    if any(text.startswith(START) for text in texts):
        raise row.error("'chosen' or 'rejected' holds the dialogue that 'prompt' is a part of; use `format: hh`")
    # Only counted: a completion may also begin with a short prompt by chance.
    if all(text.strip().startswith(prompt.strip()) for text in texts):
        said["chosen and rejected begin with the prompt, which is read twice then"] += 1


def _find_kind(row: Row) -> str:
    prompt = row.fields.get("prompt")
    if not isinstance(prompt, str):
        return "messages"
    return "text" if parse_prompt(prompt) is None else _HH


def _begin_alike(before: tuple[Message, ...], given: tuple[Message, ...], *, whole: bool) -> bool:
    """Return whether conversations begin with the row's prompt: its messages, or a user message of its text."""
    if whole:
        return before[: len(given)] == given
    return any(message.role == "user" and message.content.strip() == given[0].content.strip() for message in before)


def _add_system(row: Row, prompt: tuple[Message, ...], said: Counter[str]) -> tuple[Message, ...]:
    if not row.fields.get("system"):
        return prompt
    system = Message("system", row.text("system"))
    if prompt[0].role == "system":
        if prompt[0] != system:
            raise row.error(f"field {row.named('system')} differs from the system message in the prompt")
        return prompt
    said[f"system message from {row.named('system')}: text"] += 1
    return (system, *prompt)
