"""One contender, alone in a process, through all workloads of one round.

    python -m benchmarks.worker CONTENDER MODEL ROUND [WORKLOADS]

Prints a JSON object per line: `workload`, `seconds` (of each call, or of all), `items`, `logits`, and for ours offline
`computed_tokens`.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Contender
from benchmarks.contenders.blocking import BlockingServer
from benchmarks.contenders.ours import Http, Offline, Remembered
from benchmarks.contenders.padded import OneByOne, Padded
from benchmarks.contenders.vllm import SETTINGS, Vllm
from benchmarks.limit import measure_tokens_per_s
from benchmarks.workloads import WORKLOADS, Group, Workload, make_groups

OURS, OURS_HTTP, LIMIT = "assay, offline", "assay, HTTP", "products alone (the limit)"
REMEMBERED = "assay, HTTP, everything known already"

WARM_UP = 16  # groups of the first workload

CONTENDERS: dict[str, Callable[[Path], Contender]] = {
    OURS: Offline,
    OURS_HTTP: Http,
    REMEMBERED: Remembered,
    "transformers, padded 32": Padded,
    "transformers, padded 32, sorted": lambda model: Padded(model, by_length=True),
    "transformers, one by one": OneByOne,
    "OpenRLHF-style server": BlockingServer,
    **{name: lambda model, setting=setting: Vllm(model, setting) for name, setting in SETTINGS.items()},  # type: ignore[misc]
}


def time_workload(contender: Contender, workload: Workload, groups: list[Group]) -> dict[str, Any]:
    """Runs one workload once."""
    before = contender.computed_tokens if isinstance(contender, Offline) else 0
    parts = [[group] for group in groups] if workload.calls else [groups]
    seconds, logits = [], []
    for part in parts:
        contender.prepare(part)
        started_s = time.perf_counter()
        logits += contender.run(workload, part)
        seconds.append(time.perf_counter() - started_s)
    computed = {"computed_tokens": contender.computed_tokens - before} if isinstance(contender, Offline) else {}
    return {"workload": workload.name, "seconds": seconds, "items": len(logits), "logits": logits, **computed}


def main(name: str, model: Path, seed: int, workloads: int) -> None:
    """Loads, warms up, runs the first `workloads` of them, ends."""
    if name == LIMIT:
        print(json.dumps({"tokens_per_s": measure_tokens_per_s(str(model))}))
        return
    contender = CONTENDERS[name](model)
    try:
        contender.run(WORKLOADS[0], make_groups(WORKLOADS[0], -1)[:WARM_UP])
        for workload in WORKLOADS[:workloads]:
            if contender.served or not workload.clients:
                print(json.dumps(time_workload(contender, workload, make_groups(workload, seed))), flush=True)
    finally:
        contender.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else len(WORKLOADS))
