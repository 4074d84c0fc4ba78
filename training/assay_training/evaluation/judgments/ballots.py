"""Ballots: how voters rank the responses to a prompt.

Our own form is one JSON object per group of voters:

    {"format": "assay-ballots", "prompts": [
        {"prompt": "…", "responses": {"a": "model-x", "b": "model-y"},
         "ballots": [{"voter": "…", "ranks": {"a": 1, "b": 1}}]}]}

The thesis' form is a list of prompts, each a list of ballots (`response-1`, … with their ranks), with a file of keys
beside it: by group and prompt the model behind every response, counted from 0 (seeds §7).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_training.algorithms.voting import Ballot
from assay_training.records.record import RecordError
from assay_training.records.rows import Row, json_of

FORMAT = "assay-ballots"


@dataclass(frozen=True, slots=True)
class Poll:
    """What one group of voters said about one prompt.

    Attributes:
        group: of voters.
        prompt: that the responses answer.
        ballots: ranks by model, in the order in which the responses were shown; 1 is best.
    """

    group: str
    prompt: str
    ballots: tuple[Ballot, ...]


def read_polls(paths: Sequence[Path], keys: Path | None) -> list[Poll]:
    """The polls of all files; each file is a group of voters.

    Args:
        paths: of ballots; with `keys` in the order of its groups.
        keys: of the thesis' form.

    Raises:
        RecordError: naming file, prompt and field.
    """
    if keys is None:
        return [poll for path in paths for poll in _own(path)]
    groups = json_of(keys, dict)
    if len(groups) != len(paths):
        raise RecordError(f"{keys}: {len(groups)} groups for {len(paths)} files of ballots")
    return [
        poll
        for path, (group, models) in zip(paths, groups.items(), strict=True)
        for poll in _keyed(path, Row(f"{keys}: {group}", group, models if isinstance(models, dict) else {}))
    ]


def _own(path: Path) -> list[Poll]:
    read = Row(str(path), path.stem, json_of(path, dict))
    if read.get("format", str) != FORMAT:
        raise read.error(f"field 'format' is not {FORMAT!r}")
    polls = []
    for number, fields in enumerate(read.get("prompts", list), start=1):
        row = Row(f"{path}: prompt {number}", path.stem, fields if isinstance(fields, dict) else {})
        responses = row.get("responses", dict)
        models = list(responses.values())
        if len(models) < 2 or not all(isinstance(m, str) for m in models) or len(set(models)) < len(models):
            raise row.error("field 'responses' does not name two models or more, each once")
        ballots = tuple(
            _ballot(
                Row(f"{row.where}: ballot {i}", path.stem, ballot if isinstance(ballot, dict) else {}).get(
                    "ranks", dict
                ),
                responses,
                f"{row.where}: ballot {i}",
            )
            for i, ballot in enumerate(row.get("ballots", list), start=1)
        )
        polls.append(Poll(path.stem, row.text("prompt"), _some(ballots, row)))
    return polls


def _keyed(path: Path, keys: Row) -> list[Poll]:
    lists = json_of(path, list)
    if len(lists) != len(keys.fields):
        raise RecordError(f"{path}: ballots on {len(lists)} prompts, {keys.where} has {len(keys.fields)}")
    polls = []
    for number, (prompt, ballots) in enumerate(zip(keys.fields, lists, strict=True), start=1):
        where = f"{path}: prompt {number}"
        # Not `keys.get`, which would take the dots of a prompt for a way into nested objects.
        models = keys.fields[prompt]
        if not isinstance(models, dict) or not isinstance(ballots, list):
            raise RecordError(f"{where}: not a list of ballots with an object of models")
        shown = {f"response-{int(key) + 1}": model for key, model in models.items()}
        made = tuple(
            _ballot(
                {name: rank for name, rank in ballot.items() if name.startswith("response-")},
                shown,
                f"{where}: ballot {i}",
            )
            for i, ballot in enumerate(ballots, start=1)
        )
        polls.append(Poll(keys.subset, prompt, _some(made, Row(where, path.stem, {}))))
    return polls


def _ballot(ranks: Mapping[str, Any], models: Mapping[str, str], where: str) -> Ballot:
    if ranks.keys() != models.keys():
        raise RecordError(f"{where}: ranks {', '.join(sorted(ranks))}; the responses are {', '.join(sorted(models))}")
    for name, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int | float) or not rank >= 1:
            raise RecordError(f"{where}: field {name!r} is {rank!r}, not a rank from 1")
    return {models[name]: float(ranks[name]) for name in models}


def _some(ballots: tuple[Ballot, ...], row: Row) -> tuple[Ballot, ...]:
    if not ballots:
        raise row.error("there are no ballots")
    return ballots
