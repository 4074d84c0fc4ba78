"""Data sets to records: rankings (a prompt, its completions, which beats which) and labelled items.

Every record carries its `group` (the question or first human turn, normalised), by which parts are split, and its
`source`, by which results are reported.
"""

import gzip
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

from assay_service.scoring.item import Item, Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_RATINGS = {"Bad": 0.0, "Could be Improved": 1 / 3, "Acceptable": 2 / 3, "Excellent": 1.0}


class RecordError(ValueError):
    """A row is malformed; the message names file, row and field."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """One prompt with completions, some of which are known to beat others.

    Attributes:
        source: data set and subset.
        group: what must not be in a training and a test part at once.
        prompt: the messages before the completion.
        completions: K texts.
        pairs: (better, worse) indices into `completions`; ties are left out.
    """

    source: str
    group: str
    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]

    @property
    def data_set(self) -> str:
        """The source without its subset."""
        return self.source.split("/")[0]

    @property
    def items(self) -> tuple[Item, ...]:
        """The K conversations."""
        return tuple(Item((*self.prompt, Message("assistant", text))) for text in self.completions)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One conversation with a quality in 0..1.

    Attributes:
        source: data set and subset.
        group: what must not be in a training and a test part at once.
        item: the conversation.
        label: its quality.
    """

    source: str
    group: str
    item: Item
    label: float

    @property
    def data_set(self) -> str:
        """The source without its subset."""
        return self.source.split("/")[0]

    @property
    def items(self) -> tuple[Item, ...]:
        """The conversation, alone."""
        return (self.item,)


Record = Ranking | Labelled


def read_rankings(data: Path, sources: list[str]) -> list[Record]:
    """All rankings of `sources` below `data`.

    Raises:
        RecordError: a file or field is missing, or a source has no rankings.
    """
    readers = {"hh_rlhf": _hh_rankings, "feedbackqa": _feedbackqa_rankings}
    return _read(data, sources, readers)


def read_labelled(data: Path, sources: list[str]) -> list[Record]:
    """All labelled items of `sources` below `data`.

    Raises:
        RecordError: a file or field is missing, or a source has no labels.
    """
    readers = {"feedbackqa": _feedbackqa_labels, "diasafety": _diasafety_labels}
    return _read(data, sources, readers)


def data_hashes(data: Path, sources: list[str]) -> dict[str, str]:
    """SHA-256 of every file that the sources are read from, by path below `data`."""
    return {
        str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
        for source in sources
        for path in _files(data / source)
    }


def group_of(text: str) -> str:
    """The split key of a question: its words, without case or punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def parse_dialogue(text: str) -> tuple[Message, ...]:
    r"""An HH dialogue (`\n\nHuman: … \n\nAssistant: …`) as messages."""
    parts = _TURN.split(text)
    return tuple(Message(_ROLES[role], turn.strip()) for role, turn in zip(parts[1::2], parts[2::2], strict=True))


def _read(data: Path, sources: list[str], readers: dict[str, Any]) -> list[Record]:
    unknown = [source for source in sources if source not in readers]
    if unknown:
        raise RecordError(f"source {unknown[0]!r} has no such labels; sources that do: {', '.join(readers)}")
    return [record for source in sources for record in readers[source](data / source)]


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise RecordError(f"{folder}: no *.jsonl.gz files")
    return files


def _rows(path: Path, **fields: type) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and contents of the rows of a gzipped JSONL file, each an object that holds `fields` of these types."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RecordError(f"{path}:{number}: {error}") from error
            if not isinstance(row, dict):
                raise RecordError(f"{path}:{number}: not an object")
            for field, kind in fields.items():
                if not isinstance(row.get(field), kind):
                    raise RecordError(f"{path}:{number}: field {field!r} is not a {kind.__name__}")
            yield number, row


def _hh_rankings(folder: Path) -> Iterator[Ranking]:
    """Pairs whose earlier turns agree and whose last replies differ; the others are faulty (62 and 17 rows)."""
    for path in _files(folder):
        source = f"hh_rlhf/{path.name.split('.')[0]}"
        for _, row in _rows(path, chosen=str, rejected=str):
            chosen, rejected = parse_dialogue(row["chosen"]), parse_dialogue(row["rejected"])
            if not chosen or chosen[:-1] != rejected[:-1] or chosen[-1].content == rejected[-1].content:
                continue
            if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
                continue
            texts = (chosen[-1].content, rejected[-1].content)
            yield Ranking(source, group_of(chosen[0].content), chosen[:-1], texts, ((0, 1),))


def _feedbackqa_rows(folder: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(question, answer, ratings) of every row."""
    for path in _files(folder):
        for number, row in _rows(path, question=str, passage=dict, rating=list):
            if not row["rating"] or not all(isinstance(rating, str) and rating in _RATINGS for rating in row["rating"]):
                raise RecordError(f"{path}:{number}: field 'rating' is empty or not one of {', '.join(_RATINGS)}")
            reference = row["passage"].get("reference")
            answer = reference.get("section_content") if isinstance(reference, dict) else None
            if not isinstance(answer, str):
                raise RecordError(f"{path}:{number}: field 'passage.reference.section_content' is not a str")
            yield row["question"], answer, tuple(row["rating"])


def _feedbackqa_rankings(folder: Path) -> Iterator[Ranking]:
    """Per question its answers, and every pair of them with different mean ratings."""
    answers: dict[str, list[tuple[str, Fraction]]] = defaultdict(list)
    for question, answer, ratings in _feedbackqa_rows(folder):
        # Exact thirds, so that equal ratings are ties and not float noise.
        mean = sum((Fraction(round(_RATINGS[r] * 3), 3) for r in ratings), Fraction()) / len(ratings)
        answers[question].append((answer, mean))
    for question, rated in answers.items():
        pairs = tuple((i, j) for i, (_, a) in enumerate(rated) for j, (_, b) in enumerate(rated) if a > b)
        if pairs:
            texts = tuple(text for text, _ in rated)
            yield Ranking("feedbackqa", group_of(question), (Message("user", question),), texts, pairs)


def _feedbackqa_labels(folder: Path) -> Iterator[Labelled]:
    """Every answer with the mean of its ratings, Bad 0 to Excellent 1."""
    for question, answer, ratings in _feedbackqa_rows(folder):
        label = fmean(_RATINGS[rating] for rating in ratings)
        yield Labelled("feedbackqa", group_of(question), Item.of(question, answer), label)


def _diasafety_labels(folder: Path) -> Iterator[Labelled]:
    """Every response in its context: Safe 1, Unsafe 0."""
    for path in _files(folder):
        for number, row in _rows(path, context=str, response=str, label=str):
            if row["label"] not in ("Safe", "Unsafe"):
                raise RecordError(f"{path}:{number}: field 'label' is not Safe or Unsafe")
            item = Item.of(row["context"], row["response"])
            yield Labelled("diasafety", group_of(row["context"]), item, float(row["label"] == "Safe"))
