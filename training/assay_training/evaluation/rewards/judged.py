"""What was judged, as rankings or as candidates with a gold value, from `FORMAT:PATH`."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from assay_service.scoring.item import Item, Message
from assay_training.config.data import SOURCE_NAME, Format, Source
from assay_training.evaluation.judgments.verdicts import Verdict, read_verdicts
from assay_training.records.plain import prompt_of
from assay_training.records.record import Labelled, Pair, Ranking, RecordError, group_of
from assay_training.records.rows import Row, files, rows_of_any
from assay_training.records.sources import Read, read_labelled, read_rankings

ALPACA_EVAL = "alpaca_eval"
COMPLETIONS = "completions"


@dataclass(frozen=True, slots=True)
class Candidates:
    """The completions of one prompt, each with what it is worth.

    Attributes:
        source: where they come from.
        group: what must not be told apart by chance.
        items: the conversations.
        gold: of each, 0..1; empty where nobody has said.
    """

    source: str
    group: str
    items: tuple[Item, ...]
    gold: tuple[float, ...]


def locate(given: str) -> tuple[str, Path]:
    """Format and path of `FORMAT:PATH`.

    Raises:
        RecordError: there is no such format or path, or its name cannot name a source.
    """
    format_, _, path = given.partition(":")
    known = (*get_args(Format), ALPACA_EVAL, COMPLETIONS)
    if format_ not in known:
        raise RecordError(f"{given}: not FORMAT:PATH with one of {', '.join(known)}")
    if not Path(path).exists():
        raise RecordError(f"{given}: no such file or folder")
    if not re.fullmatch(SOURCE_NAME, Path(path).resolve().name):
        raise RecordError(f"{given}: its last part has to be of letters, digits and . _ -, 64 at most")
    return format_, Path(path)


def files_of(given: str) -> list[Path]:
    """The files of `FORMAT:PATH`, in the order in which they are read.

    Raises:
        RecordError: there are none.
    """
    format_, path = locate(given)
    if format_ != ALPACA_EVAL or path.is_file():
        return files(path)
    found = sorted([*path.glob("*.json"), *path.glob("*.json.gz")])
    if not found:
        raise RecordError(f"{path}: no *.json or *.json.gz files")
    return found


def read_comparisons(given: str) -> list[Ranking]:
    """Rankings whose completions stand in an order that says nothing of their ranks.

    AlpacaEval's stand as its models do; others, many of which have the better one first, in the order of their text.

    Raises:
        RecordError: naming file, row and field.
    """
    format_, path = locate(given)
    if format_ == ALPACA_EVAL:
        return [_of_verdict(verdict, file) for file in files_of(given) for verdict in read_verdicts(file, None)]
    if format_ == COMPLETIONS:
        raise RecordError(f"{given}: nobody has judged them")
    found = read_rankings(*_source(format_, path)).records
    return [_shuffled(record) for record in found if isinstance(record, Ranking)]


def read_candidates(given: str) -> list[Candidates]:
    """Labelled items by prompt, for prompts that have two or more; or rollouts (`prompt`, `completions`), without gold.

    Raises:
        RecordError: naming file, row and field; or no prompt has two.
    """
    format_, path = locate(given)
    if format_ == ALPACA_EVAL:
        raise RecordError(f"{given}: verdicts give no value to a completion")
    if format_ == COMPLETIONS:
        return [_of_rollouts(row, path.name) for file in files_of(given) for row in rows_of_any(file)]
    read: Read[Ranking | Labelled] = read_labelled(*_source(format_, path))
    by_prompt: dict[tuple[Message, ...], list[Labelled]] = defaultdict(list)
    for record in read.records:
        assert isinstance(record, Labelled)
        by_prompt[record.item.prompt].append(record)
    several = [of for of in by_prompt.values() if len(of) > 1]
    if not several:
        raise RecordError(f"{given}: no prompt has two completions")
    return [
        Candidates(of[0].source, of[0].group, tuple(r.item for r in of), tuple(r.label for r in of)) for of in several
    ]


def _of_rollouts(row: Row, source: str) -> Candidates:
    prompt, texts = prompt_of(row), row.get("completions", list)
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise row.error("field 'completions' is not a list of two texts or more, none of them empty")
    items = tuple(Item((*prompt, Message("assistant", text))) for text in texts)
    return Candidates(source, group_of(prompt[-1].content), items, ())


def _source(format_: str, path: Path) -> tuple[Path, Sequence[Source]]:
    return path.resolve().parent, [Source.model_validate({"name": path.resolve().name, "format": format_})]


def _of_verdict(verdict: Verdict, path: Path) -> Ranking:
    pairs = () if verdict.score == 0.5 else (Pair(0, 1) if verdict.score > 0.5 else Pair(1, 0),)
    return Ranking(
        source=path.name.split(".json")[0],
        group=group_of(verdict.instruction),
        prompt=(Message("user", verdict.instruction),),
        completions=verdict.outputs,
        pairs=pairs,
        ties=() if pairs else ((0, 1),),
    )


def _shuffled(ranking: Ranking) -> Ranking:
    order = sorted(range(len(ranking.completions)), key=lambda k: ranking.completions[k])
    place = {old: new for new, old in enumerate(order)}
    return Ranking(
        source=ranking.source,
        group=ranking.group,
        prompt=ranking.prompt,
        completions=tuple(ranking.completions[k] for k in order),
        pairs=tuple(Pair(place[pair.better], place[pair.worse], pair.gap) for pair in ranking.pairs),
        ties=tuple((min(place[i], place[j]), max(place[i], place[j])) for i, j in ranking.ties),
    )
