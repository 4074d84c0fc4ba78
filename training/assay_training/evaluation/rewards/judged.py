"""What was judged, as rankings or as candidates with a gold value, from `FORMAT:PATH`."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar, get_args

from assay_service.scoring.item import Item, Message
from assay_training.config.data import SOURCE_NAME, Format
from assay_training.evaluation import grouping
from assay_training.evaluation.judgments.ballots import FORMAT
from assay_training.evaluation.judgments.instructions import plain
from assay_training.evaluation.judgments.verdicts import Verdict, read_verdicts
from assay_training.evaluation.rewards.reading import NOTHING_DECLARED, Reading
from assay_training.records.plain import prompt_of
from assay_training.records.record import Labelled, Pair, Ranking, RecordError, group_of
from assay_training.records.rows import Row, files, json_of, rows_of_any
from assay_training.records.sources import Read, read_labelled, read_rankings

R = TypeVar("R")
ALPACA_EVAL = "alpaca_eval"
BALLOTS = "ballots"
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


def ranking_of(ranking: Ranking, kept: Sequence[int]) -> Ranking | None:
    """The ranking of some of the completions; None where no two of them were compared."""
    place = {old: new for new, old in enumerate(kept)}
    pairs = tuple(
        replace(pair, better=place[pair.better], worse=place[pair.worse])
        for pair in ranking.pairs
        if pair.better in place and pair.worse in place
    )
    ties = tuple((place[i], place[j]) for i, j in ranking.ties if i in place and j in place)
    if not pairs and not ties:
        return None
    return replace(ranking, completions=tuple(ranking.completions[k] for k in kept), pairs=pairs, ties=ties)


def candidates_of(candidates: Candidates, kept: Sequence[int]) -> Candidates | None:
    """Some of the completions; None where there are not two."""
    if len(kept) < 2:
        return None
    gold = tuple(candidates.gold[k] for k in kept) if candidates.gold else ()
    return replace(candidates, items=tuple(candidates.items[k] for k in kept), gold=gold)


def locate(given: str) -> tuple[str, Path]:
    """Format and path of `FORMAT:PATH`.

    Raises:
        RecordError: there is no such format or path, or its name cannot name a source.
    """
    format_, _, path = given.partition(":")
    known = (*get_args(Format), ALPACA_EVAL, BALLOTS, COMPLETIONS)
    if format_ == "pairs":
        raise RecordError(f"{given}: 'pairs' is called 'preferences' now, and reads the same rows: preferences:{path}")
    if format_ not in known:
        example = "" if ":" in given else f" (as in preferences:{given})"
        raise RecordError(f"{given}: not FORMAT:PATH{example} with one of {', '.join(known)}")
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
    return files(locate(given)[1])


def read_comparisons(given: str, reading: Reading = NOTHING_DECLARED) -> Read[Ranking]:
    """Rankings whose completions stand in an order that says nothing of their ranks, and how many rows gave none.

    AlpacaEval's stand as its models do, those of ballots as they were shown; others, many of which have the better one
    first, in the order of their text.

    Args:
        given: `FORMAT:PATH`.
        reading: how its rows are read.

    Raises:
        RecordError: naming file, row and field.
    """
    format_, path = locate(given)
    if format_ in (ALPACA_EVAL, BALLOTS):
        reading.check_fixed(given)
    if format_ == ALPACA_EVAL:
        return _of_verdicts(files_of(given), reading)
    if format_ == BALLOTS:
        if reading.by is not None:
            raise RecordError(f"{given}: ballots have no fields to group by; leave out --group-by")
        return Read([ranking for file in files_of(given) for ranking in _of_ballots(file)], Counter(), {})
    if format_ == COMPLETIONS:
        raise RecordError(f"{given}: nobody has judged them")
    read: Read[Ranking | Labelled] = read_rankings(
        path.resolve().parent, [reading.source(format_, path)], reading.part(path)
    )
    return _of(read, [_shuffled(record) for record in read.records if isinstance(record, Ranking)], reading.by)


def read_candidates(given: str, reading: Reading = NOTHING_DECLARED) -> Read[Candidates]:
    """Labelled items by prompt, for prompts that have two or more; or rollouts (`prompt`, `completions`), without gold.

    Args:
        given: `FORMAT:PATH`.
        reading: how its rows are read.

    Raises:
        RecordError: naming file, row and field; or no prompt has two.
    """
    format_, path = locate(given)
    if format_ in (ALPACA_EVAL, BALLOTS):
        raise RecordError(f"{given}: verdicts and ballots give no value to a completion")
    if format_ == COMPLETIONS:
        reading.check_fixed(given)
        rows = [row for file in files_of(given) for row in rows_of_any(file)]
        if reading.by is not None:
            grouping.require(rows, reading.by)
        return Read([_of_rollouts(row, _named(path.name, row, reading.by)) for row in rows], Counter(), {})
    read: Read[Ranking | Labelled] = read_labelled(
        path.resolve().parent, [reading.source(format_, path)], reading.part(path)
    )
    by_prompt: dict[tuple[str, tuple[Message, ...]], list[Labelled]] = defaultdict(list)
    for record in read.records:
        assert isinstance(record, Labelled)
        by_prompt[record.source, record.item.prompt].append(record)
    several = [of for of in by_prompt.values() if len(of) > 1]
    if not several:
        raise RecordError(f"{given}: no prompt has two completions")
    if len(several) < len(by_prompt):
        read.left_out[f"{path.name}: the only completion of its prompt"] += len(by_prompt) - len(several)
    found = [
        Candidates(of[0].source, of[0].group, tuple(r.item for r in of), tuple(r.label for r in of)) for of in several
    ]
    return _of(read, found, reading.by)


def _of(read: Read[Any], records: list[R], by: str | None) -> Read[R]:
    """Return what has become of the records that were read; the field to group by was not ignored."""
    understood = {
        name: {phrase: rows for phrase, rows in said.items() if phrase != f"ignored: {by}"}
        for name, said in read.understood.items()
    }
    return Read(records, read.left_out, understood)


def _named(source: str, row: Row, by: str | None) -> str:
    return source if by is None else f"{source}/{grouping.group(row, by)}"


def _of_rollouts(row: Row, source: str) -> Candidates:
    prompt, texts = prompt_of(row), row.get("completions", list)
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise row.error("field 'completions' is not a list of two texts or more, none of them empty")
    items = tuple(Item((*prompt, Message("assistant", text))) for text in texts)
    return Candidates(source, group_of(prompt[-1].content), items, ())


def _of_verdicts(paths: Sequence[Path], reading: Reading) -> Read[Ranking]:
    read: Read[Ranking] = Read([], Counter(), {})
    for path in paths:
        verdicts = read_verdicts([path], reading.reference, () if reading.by is None else (reading.by,))
        read.records.extend(_of_verdict(verdict, path) for verdict in verdicts.records)
        read.left_out.update(verdicts.left_out)
    return read


def _of_verdict(verdict: Verdict, path: Path) -> Ranking:
    pairs = () if verdict.score == 0.5 else (Pair(0, 1) if verdict.score > 0.5 else Pair(1, 0),)
    asked = _asked(verdict.instruction)
    return Ranking(
        source="/".join((path.name.split(".json")[0], *verdict.groups)),
        group=group_of(asked),
        prompt=(Message("user", asked),),
        completions=verdict.outputs,
        pairs=pairs,
        ties=() if pairs else ((0, 1),),
    )


def _asked(instruction: str) -> str:
    """Without chat markup, which services refuse; where there is none, white space stays as it was judged."""
    bare = plain(instruction)
    return instruction if bare == " ".join(instruction.split()) else bare


def _of_ballots(path: Path) -> Iterator[Ranking]:
    """A ranking for every prompt, with the pairs and ties of all its voters."""
    source = path.name.split(".json")[0]
    read = Row(str(path), source, json_of(path, dict))
    if read.get("format", str) != FORMAT:
        raise read.error(f"field 'format' is not {FORMAT!r}")
    for number, fields in enumerate(read.get("prompts", list), start=1):
        where = f"{path}: prompt {number}"
        if not isinstance(fields, dict):
            raise RecordError(f"{where}: not an object")
        row = Row(where, source, fields)
        prompt, responses = _asked(row.text("prompt")), row.get("responses", dict)
        if len(responses) < 2 or not all(isinstance(text, str) and text.strip() for text in responses.values()):
            raise row.error("field 'responses' is not two texts or more, none of them empty")
        voted = [_ranks(row, i, ballot, list(responses)) for i, ballot in enumerate(row.get("ballots", list), start=1)]
        if not voted:
            raise row.error("field 'ballots': there are none")
        numbers = range(len(responses))
        yield Ranking(
            source,
            group_of(prompt),
            (Message("user", prompt),),
            tuple(responses.values()),
            tuple(Pair(i, j) for ranks in voted for i in numbers for j in numbers if ranks[i] < ranks[j]),
            tuple((i, j) for ranks in voted for i, j in combinations(numbers, 2) if ranks[i] == ranks[j]),
        )


def _ranks(row: Row, number: int, ballot: object, names: Sequence[str]) -> list[float]:
    """A voter's ranks, in the order of the responses."""
    ranks = ballot.get("ranks") if isinstance(ballot, dict) else None
    if not isinstance(ranks, dict) or set(ranks) != set(names):
        raise row.error(f"field 'ballots': ballot {number} has not 'ranks' for exactly {', '.join(names)}")
    if not all(type(rank) in (int, float) and 1 <= rank <= len(names) for rank in ranks.values()):
        raise row.error(f"field 'ballots': ballot {number} has a rank that is not from 1 to {len(names)}")
    return [float(ranks[name]) for name in names]


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
