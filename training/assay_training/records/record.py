"""What a reward model or a policy is trained on: rankings, labelled items, dialogues, plain texts and prompts.

Every record carries its `group` (a dialogue, a question, a message tree), by which parts are split, and its `source`,
by which results are reported.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from assay_service.scoring.item import Item, Message


class RecordError(ValueError):
    """A row is malformed; the message names file, row and field."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a reader finds in the place of a record, where a published set is known to hold rows that cannot be used.

    Attributes:
        reason: why; what is left out is counted by it.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Understood:
    """What a reader made of the fields of its rows; it comes after them.

    Attributes:
        rows: how many there were.
        said: phrases such as `prompt from 'question': text` or `ignored: id`, with the number of rows of each.
    """

    rows: int
    said: Counter[str]


@dataclass(frozen=True, slots=True)
class _Sourced:
    """Where a record comes from.

    Attributes:
        source: data set, or data set and subset: `hh_rlhf/harmless-base`.
        group: what must not be in a training and a test part at once.
    """

    source: str
    group: str

    @property
    def data_set(self) -> str:
        """The source without its subset."""
        return self.source.split("/")[0]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of a ranking, one of which is known to be better.

    Attributes:
        better, worse: indices of the completions.
        gap: how much better, as a share of the scale that the source rates on; None where it does not say.
    """

    better: int
    worse: int
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Ranking(_Sourced):
    """One prompt with K completions, some of which are known to beat others.

    Attributes:
        prompt: the messages before the completion.
        completions: K texts.
        pairs: what beats what.
        ties: (i, j) with i < j, judged and found equally good; reported, never trained on.
    """

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    pairs: tuple[Pair, ...]
    ties: tuple[tuple[int, int], ...] = ()

    @property
    def items(self) -> tuple[Item, ...]:
        """The K conversations."""
        return tuple(Item((*self.prompt, Message("assistant", text))) for text in self.completions)


@dataclass(frozen=True, slots=True)
class Labelled(_Sourced):
    """One conversation with a quality in 0..1.

    Attributes:
        item: the conversation.
        label: its quality.
        weight: what its loss is multiplied by.
    """

    item: Item
    label: float
    weight: float = 1.0

    @property
    def items(self) -> tuple[Item, ...]:
        """The conversation, alone."""
        return (self.item,)


@dataclass(frozen=True, slots=True)
class Dialogue(_Sourced):
    """A conversation that a policy learns to continue: the loss is on what the assistant says.

    Attributes:
        messages: turns; at least one of them the assistant's.
    """

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Text(_Sourced):
    """A text without roles, for pretraining: the loss is on every token.

    Attributes:
        text: as it is.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Prompt(_Sourced):
    """What a policy is asked to answer.

    Attributes:
        messages: one or more; the policy says the next.
    """

    messages: tuple[Message, ...]


Judged = Ranking | Labelled
Spoken = Dialogue | Text
Record = Judged | Spoken | Prompt


def drop_equal_pairs(ranking: Ranking) -> Iterator[Ranking | LeftOut]:
    """A ranking without the pairs of two equal texts, each of which is left out: no model can tell those apart."""
    pairs = tuple(pair for pair in ranking.pairs if ranking.completions[pair.better] != ranking.completions[pair.worse])
    yield from [LeftOut("a pair of equal completions")] * (len(ranking.pairs) - len(pairs))
    if pairs or ranking.ties:
        yield replace(ranking, pairs=pairs)


def group_of(text: str) -> str:
    """The split key of a question: its words, without case or punctuation; where there are none, all of it."""
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()
