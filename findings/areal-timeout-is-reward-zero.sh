#!/usr/bin/env bash
# areal 1.0.4: a reward is 0 if its function raises TimeoutError, or if it waits too long to run.
#
# AsyncRewardWrapper runs a reward function in a pool of processes. After its retries, every error is raised, except
# TimeoutError: then the reward is the number 0, and a warning is logged. Two cases are not what "timeout" suggests:
# - A function that asks a server, and whose socket timed out, raises the same class. Its failure is reward 0.
# - The time counts from the submission. A call that waits for a free process gets 0, though its function is fast. A
#   timed-out call also keeps its process, and its retries queue behind it. All wrappers of one size share one pool.
# Seen: ValueError is raised, TimeoutError is 0; the fast function is 1.0 alone, and 0 behind the slow one of another
# wrapper.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-deps areal==1.0.4 colorlog==6.10.1 2>/dev/null
cat > rewards.py <<'PY'
import asyncio
import importlib.util
import logging
import sys
import time
import types

# The package imports all engines at once; an empty parent leaves them out. The module itself is the installed one.
parent = types.ModuleType("areal")
parent.__path__ = importlib.util.find_spec("areal").submodule_search_locations
sys.modules["areal"] = parent
from areal.api.reward_api import AsyncRewardWrapper  # noqa: E402

logging.disable(logging.CRITICAL)


def fast(*_: object) -> float:
    return 1.0


def slow(*_: object) -> float:
    time.sleep(3)
    return 1.0


def server_timed_out(*_: object) -> float:
    raise TimeoutError("timed out")  # as socket and urllib raise it


def wrong(*_: object) -> float:
    raise ValueError("no number in the completion")


def wrap(function, seconds):
    return AsyncRewardWrapper(function, timeout_seconds=seconds, max_workers=1, max_retries=1)


async def outcome(function, seconds=30.0):
    try:
        return await wrap(function, seconds)("prompt", "completion", [], [])
    except ValueError as error:
        return type(error).__name__


async def behind_slow():
    first = asyncio.create_task(outcome(slow))
    await asyncio.sleep(0.1)
    second = await outcome(fast, 0.5)
    return await first, second


async def main():
    seen = {
        "ValueError": await outcome(wrong),
        "TimeoutError": await outcome(server_timed_out),
        "fast alone": await outcome(fast, 0.5),
        "slow, fast": await behind_slow(),
    }
    print(seen)
    assert seen == {"ValueError": "ValueError", "TimeoutError": 0, "fast alone": 1.0, "slow, fast": (1.0, 0)}, seen
    print("as described")


if __name__ == "__main__":
    asyncio.run(main())
PY
venv/bin/python rewards.py 2>/dev/null
