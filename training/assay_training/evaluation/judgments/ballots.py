"""Read ballots, which rank the completions of a prompt, and the key to which model wrote which completion.

Assay's format is one JSON object per group of voters, and one key for all groups. Voters do not see the key:

    {"format": "assay-ballots", "prompts": [
        {"prompt": "…", "responses": {"response-1": "text", "response-2": "text"},
         "ballots": [{"voter": "…", "ranks": {"response-1": 1, "response-2": 1}}]}]}
    {"format": "assay-ballots-key", "prompts": [
        {"prompt": "…", "models": {"response-1": "model-x", "response-2": "model-y"}}]}

The format of [CRS] is a list of prompts, each a list of ballots (`response-1`, … with their ranks, and `user_id`). Its
key holds, by group of voters and prompt, the model of every completion, counted from 0, as in the data of [CRS].
If the names of all files end in a run number, it decides which group a file is (`…run-1.json` is `run_num0` of the
key). Otherwise the order of the files does.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_training.algorithms.voting import Ballot
from assay_training.records.record import RecordError
from assay_training.records.rows import Row, read_json_value

FORMAT, KEY_FORMAT = "assay-ballots", "assay-ballots-key"
_RUN = re.compile(r"run\D*(\d+)$")


@dataclass(frozen=True, slots=True)
class Poll:
    """The ballots of one group of voters on one prompt.

    Attributes:
        group: name of the group of voters.
        prompt: prompt of the completions.
        ballots: ranks by model, in the order in which the completions were shown; 1 is best. May be empty.
    """

    group: str
    prompt: str
    ballots: tuple[Ballot, ...]


def read_polls(paths: Sequence[Path], keys: Path) -> list[Poll]:
    """Read the polls of all files; each file is a group of voters.

    Args:
        paths: files of ballots. Those in the format of [CRS] stand in the order of the key's groups, unless all their
            names end in a run number.
        keys: file that says which model wrote which completion.

    Raises:
        RecordError: a file is malformed or does not match the key; the message names file, prompt and field.
    """
    key = Row(str(keys), keys.stem, read_json_value(keys, dict))
    if key.fields.get("format") == KEY_FORMAT:
        # A file's name is the name of its group of voters.
        if len({path.name for path in paths}) < len(paths):
            raise RecordError(
                f"{', '.join(map(str, paths))}: two files have the same name, which is the name of the group of "
                "voters; rename one of them"
            )
        models = _read_key(key)
        return [poll for path in paths for poll in _require_ballots(path, _read_polls(path, models, key))]
    if len(key.fields) != len(paths):
        raise key.error(f"the key has {len(key.fields)} groups of voters, but there are {len(paths)} files of ballots")
    return [
        poll
        for path, group in _assign_groups(paths, list(key.fields))
        for poll in _require_ballots(path, _read_crs_polls(path, group, key.fields[group], key))
    ]


def _assign_groups(paths: Sequence[Path], groups: Sequence[str]) -> list[tuple[Path, str]]:
    """Return every file with its group: by run number if all files have one, otherwise in the given order.

    Raises:
        RecordError: a file is given twice, or two files have the same run number.
    """
    runs = [int(match[1]) if (match := _RUN.search(path.name.split(".json")[0])) else None for path in paths]
    numbered = [run for run in runs if run is not None]
    if len(set(paths)) < len(paths) or len(set(numbered)) < len(numbered):
        raise RecordError(
            f"{', '.join(map(str, paths))}: a file is given twice, or two names end in the same run number; give one "
            "file for each group of voters"
        )
    if len(numbered) < len(paths):
        return list(zip(paths, groups, strict=True))
    matches = {group: _RUN.search(group) for group in groups}
    if all(matches.values()):
        groups = sorted(groups, key=lambda group: int(match[1]) if (match := matches[group]) else 0)
    ordered = [path for _, path in sorted(zip(numbered, paths, strict=True))]
    return list(zip(ordered, groups, strict=True))


def _require_ballots(path: Path, polls: Iterable[Poll]) -> list[Poll]:
    """Return the polls of a file, or raise if none of them has a ballot."""
    read = list(polls)
    if not any(poll.ballots for poll in read):
        raise RecordError(f"{path}: the file has no ballots")
    return read


def _read_key(key: Row) -> dict[str, object]:
    """Return, by prompt, the models that wrote the completions, from a key in Assay's format."""
    rows = [_require_object(f"{key.where}: prompt {i}", item) for i, item in enumerate(key.get("prompts", list), 1)]
    models: dict[str, object] = {row.text("prompt"): row.get("models", dict) for row in rows}
    if not rows or len(models) < len(rows):
        raise key.error("field 'prompts' is empty, or has a prompt twice")
    return models


def _read_polls(path: Path, models: Mapping[str, object], key: Row) -> Iterator[Poll]:
    """Yield the polls of a file in Assay's format."""
    content = Row(str(path), path.stem, read_json_value(path, dict))
    if content.get("format", str) != FORMAT:
        raise content.error(f"field 'format' is not {FORMAT!r}")
    prompts = content.get("prompts", list)
    rows = [_require_object(f"{path}: prompt {i}", fields) for i, fields in enumerate(prompts, start=1)]
    # Matched by text, so that the prompts of a file may be in another order than those of the key.
    if sorted(row.text("prompt") for row in rows) != sorted(models):
        raise content.error(f"field 'prompts' does not hold the prompts of {key.where}, each once")
    for row in rows:
        names = _require_object(f"{key.where}: {row.text('prompt')[:60]!r}", models[row.text("prompt")]).fields
        if row.get("responses", dict).keys() != names.keys():
            raise row.error(f"field 'responses' does not have the names of {key.where}: {', '.join(names)}")
        ballots = _read_ballots(row, "voter")
        yield Poll(
            path.name.split(".json")[0],
            row.text("prompt"),
            _rank_models([ballot.get("ranks", dict) for ballot in ballots], names, row, key),
        )


def _read_crs_polls(path: Path, group: str, prompts: object, key: Row) -> Iterator[Poll]:
    """Yield the polls of a file in the format of [CRS]."""
    lists = read_json_value(path, list)
    known = _require_object(f"{key.where}: {group}", prompts)
    if not lists or len(lists) != len(known.fields):
        raise RecordError(f"{path}: ballots on {len(lists)} prompts, but {known.where} has {len(known.fields)} prompts")
    for number, ((prompt, models), ballots) in enumerate(zip(known.fields.items(), lists, strict=True), start=1):
        row = Row(f"{path}: prompt {number}", group, {"ballots": ballots})
        by_index = _require_object(f"{known.where}: prompt {number}", models).fields
        indices = [str(index) for index in range(len(by_index))]
        # Sorted by length first, so that "10" stands after "9".
        if sorted(by_index, key=lambda name: (len(name), name)) != indices:
            odd = next((name for name in by_index if name not in indices), "")
            raise RecordError(
                f"{known.where}: prompt {number}: field {odd!r}: the completions must be numbered from 0 without gaps"
            )
        # The key counts from 0, the ballots from 1.
        shown = {f"response-{int(index) + 1}": model for index, model in by_index.items()}
        ballot_rows = _read_ballots(row, "user_id")
        ranks = [{k: v for k, v in ballot.fields.items() if k.startswith("response-")} for ballot in ballot_rows]
        yield Poll(group, prompt, _rank_models(ranks, shown, row, key))


def _read_ballots(row: Row, voter: str) -> list[Row]:
    """Return the ballots on a prompt.

    Args:
        row: row with the list `ballots`.
        voter: field of a ballot that names the voter; it may be missing or empty.

    Raises:
        RecordError: a ballot is not an object, or a named voter has two ballots.
    """
    ballots = [_require_object(f"{row.where}: ballot {i}", item) for i, item in enumerate(row.get("ballots", list), 1)]
    seen: list[object] = []
    for ballot in ballots:
        name = ballot.fields.get(voter)
        # Anonymous ballots cannot be checked: any number of them may be of one voter.
        if name is not None and name != "" and name in seen:
            raise ballot.error(f"field {voter!r}: {name!r} has another ballot on this prompt")
        seen.append(name)
    return ballots


def _rank_models(all_ranks: Sequence[Mapping[str, Any]], models: object, row: Row, key: Row) -> tuple[Ballot, ...]:
    """Return the ranks of each ballot by model, given those by the name of a completion."""
    known = _require_object(f"{key.where}: the key of {row.where}", models)
    names = list(known.fields.values())
    if len(names) < 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise known.error("must name two models or more, each once")
    return tuple(
        _rank_ballot(ranks, known.fields, f"{row.where}: ballot {i}") for i, ranks in enumerate(all_ranks, start=1)
    )


def _rank_ballot(ranks: Mapping[str, Any], models: Mapping[str, str], where: str) -> Ballot:
    odd = next((name for name in [*ranks, *models] if name not in ranks or name not in models), None)
    if odd is not None:
        problem = "is not one of the completions" if odd in ranks else "has no rank"
        raise RecordError(f"{where}: field {odd!r} {problem}; the completions are {', '.join(sorted(models))}")
    for name, rank in ranks.items():
        # A bool is an int in Python, but `true` is not a rank.
        if isinstance(rank, bool) or not isinstance(rank, int | float) or not 1 <= rank <= len(ranks):
            raise RecordError(f"{where}: field {name!r} is {rank!r}, not a rank from 1 to {len(ranks)}")
    return {models[name]: float(ranks[name]) for name in models}


def _require_object(where: str, value: object) -> Row:
    """Return a JSON object as a row, or raise if the value is not an object."""
    if not isinstance(value, dict):
        raise RecordError(f"{where}: not an object")
    return Row(where, "", value)
