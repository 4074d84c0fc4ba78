"""Ballots: how voters rank the responses to a prompt, and the key that says which model wrote which response.

Our own form is one JSON object per group of voters, and one key for all of them, so that voters need not see names:

    {"format": "assay-ballots", "prompts": [
        {"prompt": "…", "responses": {"response-1": "text", "response-2": "text"},
         "ballots": [{"voter": "…", "ranks": {"response-1": 1, "response-2": 1}}]}]}
    {"format": "assay-ballots-key", "prompts": [
        {"prompt": "…", "models": {"response-1": "model-x", "response-2": "model-y"}}]}

[CRS]'s form is a list of prompts, each a list of ballots (`response-1`, … with their ranks, and `user_id`); its key
has, by group of voters and prompt, the model behind every response, counted from 0, as in the data of [CRS]. The
run's number in a file's name gives its group (`…run-1.json` is `run_num0` of the key), else the file's place does.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_training.algorithms.voting import Ballot
from assay_training.records.record import RecordError
from assay_training.records.rows import Row, json_of

FORMAT, KEY_FORMAT = "assay-ballots", "assay-ballots-key"
_RUN = re.compile(r"run\D*(\d+)$")


@dataclass(frozen=True, slots=True)
class Poll:
    """What one group of voters said about one prompt.

    Attributes:
        group: of voters.
        prompt: that the responses answer.
        ballots: ranks by model, in the order in which the responses were shown; 1 is best. May be none.
    """

    group: str
    prompt: str
    ballots: tuple[Ballot, ...]


def read_polls(paths: Sequence[Path], keys: Path) -> list[Poll]:
    """The polls of all files; each file is a group of voters.

    Args:
        paths: of ballots; in [CRS]'s form in the order of the key's groups, unless all names have a run's number.
        keys: which model wrote which response.

    Raises:
        RecordError: naming file, prompt and field.
    """
    known = Row(str(keys), keys.stem, json_of(keys, dict))
    if known.fields.get("format") == KEY_FORMAT:
        if len({path.name for path in paths}) < len(paths):
            raise RecordError(f"{', '.join(map(str, paths))}: two groups of voters have one name")
        models = _models(known)
        return [poll for path in paths for poll in _with_ballots(path, _own(path, models, known))]
    if len(known.fields) != len(paths):
        raise known.error(f"{len(known.fields)} groups for {len(paths)} files of ballots")
    return [
        poll
        for path, group in _of_groups(paths, list(known.fields))
        for poll in _with_ballots(path, _of_the_thesis(path, group, known.fields[group], known))
    ]


def _of_groups(paths: Sequence[Path], groups: Sequence[str]) -> list[tuple[Path, str]]:
    """Every file with its group: by the runs' numbers if all files have one, else as they are.

    Raises:
        RecordError: two files are one, or of one run.
    """
    runs = [int(found[1]) if (found := _RUN.search(path.name.split(".json")[0])) else None for path in paths]
    numbered = [run for run in runs if run is not None]
    if len(set(paths)) < len(paths) or len(set(numbered)) < len(numbered):
        raise RecordError(f"{', '.join(map(str, paths))}: two of them are one, or of one run")
    if len(numbered) < len(paths):
        return list(zip(paths, groups, strict=True))
    of_groups = {group: _RUN.search(group) for group in groups}
    if all(of_groups.values()):
        groups = sorted(groups, key=lambda group: int(found[1]) if (found := of_groups[group]) else 0)
    ordered = [path for _, path in sorted(zip(numbered, paths, strict=True))]
    return list(zip(ordered, groups, strict=True))


def _with_ballots(path: Path, polls: Iterable[Poll]) -> list[Poll]:
    found = list(polls)
    if not any(poll.ballots for poll in found):
        raise RecordError(f"{path}: there are no ballots")
    return found


def _models(keys: Row) -> dict[str, object]:
    """Who wrote the responses to every prompt of our own key."""
    rows = [_object(f"{keys.where}: prompt {i}", of) for i, of in enumerate(keys.get("prompts", list), start=1)]
    models: dict[str, object] = {row.text("prompt"): row.get("models", dict) for row in rows}
    if not rows or len(models) < len(rows):
        raise keys.error("no prompts, or one of them twice")
    return models


def _own(path: Path, models: Mapping[str, object], keys: Row) -> Iterator[Poll]:
    read = Row(str(path), path.stem, json_of(path, dict))
    if read.get("format", str) != FORMAT:
        raise read.error(f"field 'format' is not {FORMAT!r}")
    rows = [_object(f"{path}: prompt {i}", fields) for i, fields in enumerate(read.get("prompts", list), start=1)]
    if sorted(row.text("prompt") for row in rows) != sorted(models):
        raise read.error(f"field 'prompts': they are not those of {keys.where}, each once")
    for row in rows:
        of = _object(f"{keys.where}: {row.text('prompt')[:60]!r}", models[row.text("prompt")]).fields
        if row.get("responses", dict).keys() != of.keys():
            raise row.error(f"field 'responses': they are not those of {keys.where}")
        cast = _cast(row, "voter")
        yield Poll(
            path.name.split(".json")[0],
            row.text("prompt"),
            _ballots([b.get("ranks", dict) for b in cast], of, row, keys),
        )


def _of_the_thesis(path: Path, group: str, prompts: object, keys: Row) -> Iterator[Poll]:
    lists = json_of(path, list)
    known = _object(f"{keys.where}: {group}", prompts)
    if not lists or len(lists) != len(known.fields):
        raise RecordError(f"{path}: ballots on {len(lists)} prompts, {known.where} has {len(known.fields)}")
    for number, ((prompt, models), ballots) in enumerate(zip(known.fields.items(), lists, strict=True), start=1):
        row = Row(f"{path}: prompt {number}", group, {"ballots": ballots})
        counted = _object(f"{known.where}: prompt {number}", models).fields
        places = [str(place) for place in range(len(counted))]
        if sorted(counted, key=lambda name: (len(name), name)) != places:
            odd = next((name for name in counted if name not in places), "")
            raise RecordError(f"{known.where}: prompt {number}: field {odd!r}: responses are not counted from 0")
        shown = {f"response-{int(place) + 1}": model for place, model in counted.items()}
        ranks = [{k: v for k, v in b.fields.items() if k.startswith("response-")} for b in _cast(row, "user_id")]
        yield Poll(group, prompt, _ballots(ranks, shown, row, keys))


def _cast(row: Row, voter: str) -> list[Row]:
    """The ballots on a prompt.

    Raises:
        RecordError: a voter, if named, has two.
    """
    cast = [_object(f"{row.where}: ballot {i}", b) for i, b in enumerate(row.get("ballots", list), start=1)]
    seen: list[object] = []
    for ballot in cast:
        name = ballot.fields.get(voter)
        if name is not None and name != "" and name in seen:
            raise ballot.error(f"field {voter!r}: {name!r} has another ballot on this prompt")
        seen.append(name)
    return cast


def _ballots(all_ranks: Sequence[Mapping[str, Any]], models: object, row: Row, keys: Row) -> tuple[Ballot, ...]:
    """The ranks on each ballot, by model."""
    known = _object(f"{keys.where}: the key of {row.where}", models)
    names = list(known.fields.values())
    if len(names) < 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise known.error("does not name two models or more, each once")
    return tuple(_ballot(ranks, known.fields, f"{row.where}: ballot {i}") for i, ranks in enumerate(all_ranks, start=1))


def _ballot(ranks: Mapping[str, Any], models: Mapping[str, str], where: str) -> Ballot:
    odd = next((name for name in [*ranks, *models] if name not in ranks or name not in models), None)
    if odd is not None:
        kind = "is no response" if odd in ranks else "has no rank"
        raise RecordError(f"{where}: field {odd!r} {kind}; the responses are {', '.join(sorted(models))}")
    for name, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int | float) or not 1 <= rank <= len(ranks):
            raise RecordError(f"{where}: field {name!r} is {rank!r}, not a rank from 1 to {len(ranks)}")
    return {models[name]: float(ranks[name]) for name in models}


def _object(where: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise RecordError(f"{where}: not an object")
    return Row(where, "", value)
