"""Read judged completions from `FORMAT:PATH`: as rankings, or as candidates with gold values."""

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
from assay_training.evaluation.judgments.instructions import strip_markup
from assay_training.evaluation.judgments.verdicts import Verdict, read_verdicts
from assay_training.evaluation.rewards.options import NO_OPTIONS, ReadOptions
from assay_training.records.plain import read_prompt
from assay_training.records.record import Labelled, Pair, Ranking, RecordError, find_group
from assay_training.records.rows import Row, list_data_files, read_file_rows, read_json_value
from assay_training.records.sources import Read, read_labelled, read_rankings

R = TypeVar("R")
ALPACA_EVAL = "alpaca_eval"
BALLOTS = "ballots"
COMPLETIONS = "completions"


@dataclass(frozen=True, slots=True)
class Candidates:
    """The completions of one prompt, with their gold values.

    Attributes:
        source: name of their source.
        group: group of the prompt; intervals are clustered by it, since one group is one sample.
        items: conversations, one for each completion.
        gold: gold value of each completion, 0..1; empty without labels.
    """

    source: str
    group: str
    items: tuple[Item, ...]
    gold: tuple[float, ...]


def select_ranking(ranking: Ranking, kept: Sequence[int]) -> Ranking | None:
    """Return a ranking of some of its completions, or `None` if no two of them were compared.

    Args:
        ranking: ranking to select from.
        kept: indices of the completions to keep.
    """
    # Pairs hold indices of completions, which change when completions are removed.
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


def select_candidates(candidates: Candidates, kept: Sequence[int]) -> Candidates | None:
    """Return some of the candidates of a prompt, or `None` if these are fewer than two.

    Args:
        candidates: candidates to select from.
        kept: indices of the completions to keep.
    """
    if len(kept) < 2:
        return None
    gold = tuple(candidates.gold[k] for k in kept) if candidates.gold else ()
    return replace(candidates, items=tuple(candidates.items[k] for k in kept), gold=gold)


def parse_source(given: str) -> tuple[str, Path]:
    """Return the format and the path of `FORMAT:PATH`.

    Raises:
        RecordError: the format is unknown, the path does not exist, or its last part cannot be the name of a source.
    """
    format_, _, path = given.partition(":")
    known = (*get_args(Format), ALPACA_EVAL, BALLOTS, COMPLETIONS)
    # An old name of the format, which older commands and scripts still use.
    if format_ == "pairs":
        raise RecordError(
            f"{given}: the format 'pairs' is now called 'preferences'; write preferences:{path} for the same rows"
        )
    if format_ not in known:
        example = "" if ":" in given else f" (as in preferences:{given})"
        raise RecordError(f"{given}: not of the form FORMAT:PATH{example}; FORMAT is one of {', '.join(known)}")
    if not Path(path).exists():
        raise RecordError(f"{given}: no such file or folder")
    if not re.fullmatch(SOURCE_NAME, Path(path).resolve().name):
        raise RecordError(
            f"{given}: the last part of the path is the name of the source; it must have at most 64 characters, only "
            "letters, digits and . _ -"
        )
    return format_, Path(path)


def list_files(given: str) -> list[Path]:
    """Return the files of `FORMAT:PATH`, in the order in which they are read.

    Raises:
        RecordError: `FORMAT:PATH` is malformed, or the folder has no files of records.
    """
    return list_data_files(parse_source(given)[1])


def read_comparisons(given: str, options: ReadOptions = NO_OPTIONS) -> Read[Ranking]:
    """Read rankings whose completions stand in an order that does not depend on their ranks.

    Completions of AlpacaEval stand in the order of its models, those of ballots as they were shown. Other files often
    have the preferred completion first, so their completions are sorted by text.

    Args:
        given: source as `FORMAT:PATH`.
        options: options for reading the rows.

    Raises:
        RecordError: a row is malformed (the message names file, row and field), or the format takes other options.
    """
    format_, path = parse_source(given)
    if format_ in (ALPACA_EVAL, BALLOTS):
        options.check_fixed(given)
    if format_ == ALPACA_EVAL:
        return _read_verdict_rankings(list_files(given), options)
    if format_ == BALLOTS:
        if options.by is not None:
            raise RecordError(f"{given}: ballots have no fields to group by; omit --group-by")
        return Read([ranking for file in list_files(given) for ranking in _read_ballot_rankings(file)], Counter(), {})
    if format_ == COMPLETIONS:
        raise RecordError(f"{given}: the format 'completions' has no judgments; choose a format with preferences")
    # The readers look for a source by its name inside a folder, as in training.
    read: Read[Ranking | Labelled] = read_rankings(
        path.resolve().parent, [options.build_source(format_, path)], options.build_part(path)
    )
    rankings = [_sort_completions(record) for record in read.records if isinstance(record, Ranking)]
    return _replace_records(read, rankings, options.by)


def read_candidates(given: str, options: ReadOptions = NO_OPTIONS) -> Read[Candidates]:
    """Read labelled completions by prompt, or rollouts (`prompt`, `completions`), which have no gold values.

    Prompts with a single labelled completion are dropped and counted.

    Args:
        given: source as `FORMAT:PATH`.
        options: options for reading the rows.

    Raises:
        RecordError: a row is malformed (the message names file, row and field). Or the format takes other options or
            has no completions with labels, or no prompt has two completions.
    """
    format_, path = parse_source(given)
    if format_ in (ALPACA_EVAL, BALLOTS):
        raise RecordError(
            f"{given}: verdicts and ballots have no label for each completion; choose the format labels or completions"
        )
    if format_ == COMPLETIONS:
        options.check_fixed(given)
        rows = [row for file in list_files(given) for row in read_file_rows(file)]
        if options.by is not None:
            grouping.check_field(rows, options.by)
        return Read([_read_rollout(row, _name_part(path.name, row, options.by)) for row in rows], Counter(), {})
    read: Read[Ranking | Labelled] = read_labelled(
        path.resolve().parent, [options.build_source(format_, path)], options.build_part(path)
    )
    # By all messages: conversations may differ and still end with the same question.
    by_prompt: dict[tuple[str, tuple[Message, ...]], list[Labelled]] = defaultdict(list)
    for record in read.records:
        assert isinstance(record, Labelled)
        by_prompt[record.source, record.item.prompt].append(record)
    several = [records for records in by_prompt.values() if len(records) > 1]
    if not several:
        raise RecordError(f"{given}: no prompt has two completions to choose from")
    if len(several) < len(by_prompt):
        read.dropped[f"{path.name}: the only completion of its prompt"] += len(by_prompt) - len(several)
    candidates = [
        Candidates(records[0].source, records[0].group, tuple(r.item for r in records), tuple(r.label for r in records))
        for records in several
    ]
    return _replace_records(read, candidates, options.by)


def _replace_records(read: Read[Any], records: list[R], by: str | None) -> Read[R]:
    """Return other records with the counts of those that were read.

    The readers count the field to group by as ignored; that count is removed, as the field was used here.
    """
    understood = {
        name: {phrase: rows for phrase, rows in counts.items() if phrase != f"ignored: {by}"}
        for name, counts in read.understood.items()
    }
    return Read(records, read.dropped, understood)


def _name_part(source: str, row: Row, by: str | None) -> str:
    return source if by is None else f"{source}/{grouping.read_group(row, by)}"


def _read_rollout(row: Row, source: str) -> Candidates:
    prompt, texts = read_prompt(row), row.get("completions", list)
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise row.error("field 'completions' is not a list of two texts or more, none of them empty")
    items = tuple(Item((*prompt, Message("assistant", text))) for text in texts)
    return Candidates(source, find_group(prompt[-1].content), items, ())


def _read_verdict_rankings(paths: Sequence[Path], options: ReadOptions) -> Read[Ranking]:
    read: Read[Ranking] = Read([], Counter(), {})
    for path in paths:
        verdicts = read_verdicts([path], options.reference, () if options.by is None else (options.by,))
        read.records.extend(_convert_verdict(verdict, path) for verdict in verdicts.records)
        read.dropped.update(verdicts.dropped)
    return read


def _convert_verdict(verdict: Verdict, path: Path) -> Ranking:
    """Return a verdict as a ranking of two completions; a draw is a tie."""
    # A ranking has no partial wins: any score above one half is a win.
    pairs = () if verdict.score == 0.5 else (Pair(0, 1) if verdict.score > 0.5 else Pair(1, 0),)
    prompt = _clean_instruction(verdict.instruction)
    return Ranking(
        source="/".join((path.name.split(".json")[0], *verdict.groups)),
        group=find_group(prompt),
        prompt=(Message("user", prompt),),
        completions=verdict.outputs,
        pairs=pairs,
        ties=() if pairs else ((0, 1),),
    )


def _clean_instruction(instruction: str) -> str:
    """Return an instruction without chat markup, which a service refuses as it would forge turns.

    An instruction without markup keeps its white space, since the judge saw it like that.
    """
    bare = strip_markup(instruction)
    return instruction if bare == " ".join(instruction.split()) else bare


def _read_ballot_rankings(path: Path) -> Iterator[Ranking]:
    """Yield a ranking for every prompt, with the pairs and ties of all its voters."""
    source = path.name.split(".json")[0]
    content = Row(str(path), source, read_json_value(path, dict))
    if content.get("format", str) != FORMAT:
        raise content.error(f"field 'format' is not {FORMAT!r}")
    for number, fields in enumerate(content.get("prompts", list), start=1):
        where = f"{path}: prompt {number}"
        if not isinstance(fields, dict):
            raise RecordError(f"{where}: not an object")
        row = Row(where, source, fields)
        prompt, texts = _clean_instruction(row.text("prompt")), row.get("responses", dict)
        if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts.values()):
            raise row.error("field 'responses' must have two texts or more, none of them empty")
        ballots = row.get("ballots", list)
        voted = [_read_ranks(row, i, ballot, list(texts)) for i, ballot in enumerate(ballots, start=1)]
        if not voted:
            raise row.error("field 'ballots' is empty")
        numbers = range(len(texts))
        yield Ranking(
            source,
            find_group(prompt),
            (Message("user", prompt),),
            tuple(texts.values()),
            tuple(Pair(i, j) for ranks in voted for i in numbers for j in numbers if ranks[i] < ranks[j]),
            tuple((i, j) for ranks in voted for i, j in combinations(numbers, 2) if ranks[i] == ranks[j]),
        )


def _read_ranks(row: Row, number: int, ballot: object, names: Sequence[str]) -> list[float]:
    """Return a voter's ranks, in the order of the names of the completions."""
    ranks = ballot.get("ranks") if isinstance(ballot, dict) else None
    if not isinstance(ranks, dict) or set(ranks) != set(names):
        raise row.error(f"field 'ballots': ballot {number} must have 'ranks' for exactly {', '.join(names)}")
    # `type` instead of `isinstance`: true and false are not ranks.
    if not all(type(rank) in (int, float) and 1 <= rank <= len(names) for rank in ranks.values()):
        raise row.error(f"field 'ballots': ballot {number} has a rank that is not a number from 1 to {len(names)}")
    return [float(ranks[name]) for name in names]


def _sort_completions(ranking: Ranking) -> Ranking:
    """Return a ranking with its completions sorted by text, so that their order says nothing about their ranks."""
    order = sorted(range(len(ranking.completions)), key=lambda k: ranking.completions[k])
    place = {old: new for new, old in enumerate(order)}
    return Ranking(
        source=ranking.source,
        group=ranking.group,
        prompt=ranking.prompt,
        completions=tuple(ranking.completions[k] for k in order),
        pairs=tuple(Pair(place[pair.better], place[pair.worse], pair.gap) for pair in ranking.pairs),
        # A tie has no order, so the smaller index is first, as the readers have it.
        ties=tuple((min(place[i], place[j]), max(place[i], place[j])) for i, j in ranking.ties),
    )
