"""Define the records on which models are trained: rankings, labelled items, dialogues, plain texts and prompts.

Every record has a `group` (a dialogue, a question or a message tree), by which data are split. It also has a `source`,
by which results are reported.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from assay_service.scoring.item import Item, Message

# A row is read for a run, whose YAML declares how, or for `assay evaluate`, whose options do. Errors name both.
FIELD_OPTION = "`--field` of `assay evaluate`"
GAP_OPTION = "`--largest-gap` of `assay evaluate`"


class RecordError(ValueError):
    """An error in a row; the message names the file, the row and the field."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A dropped record: published sets are known to have rows that cannot be used.

    Attributes:
        reason: reason, by which dropped records are counted.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Understood:
    """A reader's report of how it read the fields of its rows, after the last record.

    Attributes:
        rows: number of rows.
        said: number of rows of each phrase, such as `prompt from 'question': text` or `ignored: id`.
    """

    rows: int
    said: Counter[str]


@dataclass(frozen=True, slots=True)
class _Sourced:
    """The origin of a record.

    Attributes:
        source: data set, or data set and subset, such as `hh_rlhf/harmless-base`.
        group: key of the split; all records of a group are in the same part, training or test.
    """

    source: str
    group: str

    @property
    def data_set(self) -> str:
        """Return the source without its subset."""
        return self.source.split("/")[0]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of a ranking, one of which is known to be better.

    Attributes:
        better, worse: indices of the completions.
        gap: difference in quality, as a share of the source's rating scale; None without ratings.
    """

    better: int
    worse: int
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Ranking(_Sourced):
    """One prompt with K completions, some of which are known to beat others.

    Attributes:
        prompt: messages before the completion.
        completions: texts of the K completions.
        pairs: pairs with a better and a worse completion.
        ties: pairs (i, j) with i < j that were judged equally good; they are reported, but not trained on.
    """

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    pairs: tuple[Pair, ...]
    ties: tuple[tuple[int, int], ...] = ()

    @property
    def items(self) -> tuple[Item, ...]:
        """Return the K conversations."""
        return tuple(Item((*self.prompt, Message("assistant", text))) for text in self.completions)


@dataclass(frozen=True, slots=True)
class Labelled(_Sourced):
    """One conversation with a quality in 0..1.

    Attributes:
        item: conversation that ends with the completion.
        label: quality of the completion, in 0..1.
        weight: factor on the loss of the item.
    """

    item: Item
    label: float
    weight: float = 1.0

    @property
    def items(self) -> tuple[Item, ...]:
        """Return the conversation as a tuple of one."""
        return (self.item,)


@dataclass(frozen=True, slots=True)
class Dialogue(_Sourced):
    """A conversation on which a policy is trained; the loss is on the messages of the assistant.

    Attributes:
        messages: messages, at least one of which is the assistant's.
    """

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Text(_Sourced):
    """A text without roles, for pretraining: the loss is on every token.

    Attributes:
        text: text without any template.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Prompt(_Sourced):
    """A prompt for a policy.

    Attributes:
        messages: one message or more; the policy generates the next one.
    """

    messages: tuple[Message, ...]


Judged = Ranking | Labelled
Spoken = Dialogue | Text
Record = Judged | Spoken | Prompt


def drop_equal_pairs(ranking: Ranking) -> Iterator[Ranking | Dropped]:
    """Yield a ranking without pairs of equal completions, which no model can distinguish.

    A dropped record is yielded for each such pair; nothing else is yielded if no pair and no tie remains.
    """
    pairs = tuple(pair for pair in ranking.pairs if ranking.completions[pair.better] != ranking.completions[pair.worse])
    # Ties stay also if their texts are equal: they are only reported.
    yield from [Dropped("a pair of equal completions")] * (len(ranking.pairs) - len(pairs))
    if pairs or ranking.ties:
        yield replace(ranking, pairs=pairs)


def find_group(text: str) -> str:
    """Return the group of a question: its words, without case or punctuation; a text without words unchanged.

    Questions that differ in nothing else are one group, and are never in a training and a test part at once.
    """
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()


def explain_drop(name: str) -> str:
    """Return how to leave a field out, in a run's YAML and on the command line."""
    return f"`fields: {{{name}: null}}` (`--field {name}=` of `assay evaluate`)"
