"""Compute the statistics that NeMo-Gym's resources servers return for a set of verified rows; pure.

Source: `nemo_gym/reward_profile.py` in https://github.com/NVIDIA-NeMo/Gym. Its numbers are pandas' defaults: missing
values are skipped, and the standard deviation divides by n - 1.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assay_service.errors import ServingError

_TASK, _ROLLOUT = "_ng_task_index", "_ng_rollout_index"

Columns = dict[str, float]


def aggregate_rollouts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the statistics of each task, those of all rows, and the means among the latter.

    Args:
        rows: answers of `/verify`; every numeric column is described, and those of `response.usage`.

    Raises:
        ServingError: a row has no valid index, two rows are the same rollout of one task, or a statistic is not
            finite.
    """
    tasks: dict[int, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for number, row in enumerate(rows):
        task, rollout = row.get(_TASK, 0), row.get(_ROLLOUT, 0)
        if type(task) is not int or type(rollout) is not int or rollout in tasks[task]:
            raise ServingError(
                f"`{_TASK}` and `{_ROLLOUT}` must be whole numbers, and name each row once",
                code="invalid_request",
                param=f"verify_responses[{number}]",
            )
        tasks[task][rollout] = row
    overall = _describe([_read_columns(row) for row in rows])
    return {
        "group_level_metrics": [_describe_task(task, tasks[task]) for task in sorted(tasks)],
        "agent_metrics": overall,
        "key_metrics": {name: value for name, value in overall.items() if name.startswith("mean/")},
    }


def _describe_task(task: int, rollouts: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    columns = {rollout: _read_columns(row) for rollout, row in sorted(rollouts.items())}
    return {
        _TASK: task,
        **_describe(list(columns.values())),
        "sample": {"agent_ref": {"name": "agent"}},
        "num_rollouts": len(rollouts),
        "expected_num_rollouts": len(rollouts),
        "missing_num_rollouts": 0,
        "reward_profile_completion_pct": 100.0,
        "rollout_infos": [
            {"rollout_id": f"{task}:{rollout}", _TASK: task, _ROLLOUT: rollout, **values}
            for rollout, values in columns.items()
        ],
    }


def _read_columns(row: Mapping[str, Any]) -> Columns:
    """Return the numeric columns of a row and of its usage; a truth value counts as 0 or 1."""
    response = row.get("response")
    usage = response.get("usage") if isinstance(response, Mapping) else None
    columns = {**row, **(usage if isinstance(usage, Mapping) else {})}
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in columns.items()
        if isinstance(value, int | float) and name not in (_TASK, _ROLLOUT)
    }


def _describe(rows: Sequence[Columns]) -> dict[str, float]:
    """Return the statistics of each column as `STATISTIC/COLUMN`, all of them finite."""
    try:
        described = _compute_statistics(rows)
        finite = all(map(math.isfinite, described.values()))
    except OverflowError:
        finite = False
    if not finite:
        raise ServingError(
            "a column holds numbers whose statistics are too large for a float of 64 bits",
            code="invalid_request",
            param="verify_responses",
        )
    return described


def _compute_statistics(rows: Sequence[Columns]) -> dict[str, float]:
    columns: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            columns[name].append(value)
    described: dict[str, float] = {}
    for label, compute in _STATISTICS.items():
        described |= {f"{label}/{name}": compute(values) for name, values in columns.items()}
    if all(len(values) < 2 for values in columns.values()):
        # As in NeMo-Gym: without any deviation, it is 0 for the columns that every row has.
        described |= {f"std/{name}": 0.0 for name, values in columns.items() if len(values) == len(rows)}
    else:
        described |= {f"std/{name}": statistics.stdev(values) for name, values in columns.items() if len(values) > 1}
    return described


_STATISTICS: Mapping[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "median": statistics.median,
}
