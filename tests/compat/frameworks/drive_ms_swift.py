"""Score by ms-swift's `compute_rewards_per_func`, with the functions that its plugins register in `orms`."""

import json
import sys
from typing import Any

from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func
from swift.rlhf_trainers.utils import resolve_reward_funcs

from assay_client import ItemsFailed
from assay_client.integrations.ms_swift import make_async_orm, make_orm, make_signal_orms

JOB = json.load(sys.stdin)
orms["assay"] = make_orm(JOB["url"])
orms["assay_async"] = make_async_orm(JOB["url"], floor=-10.0)
orms.update(make_signal_orms(JOB["url"], JOB["signals"]))


def score(names: list[str], completions: list[tuple[str, str]]) -> list[list[float]]:
    """Return the rewards of each function, fp32."""
    functions, _ = resolve_reward_funcs(names, args=None)
    samples = [build_sample(str(row), *completion) for row, completion in enumerate(completions)]
    rewards = compute_rewards_per_func(samples, functions, None, "cpu")
    return [[float(value) for value in column] for column in rewards.T.tolist()]


def build_sample(request_id: str, text: str, end: str) -> Any:
    row = {
        "messages": [*JOB["prompt"], {"role": "assistant", "content": text}],
        "finish_reason": "stop" if end else "length",
        "request_id": request_id,
        "prompt_id": "p",
    }
    return GRPOSample.from_row(row)


rewards, by_coroutine, *signals = score(["assay", "assay_async", *JOB["signals"]], JOB["completions"])
assert by_coroutine == rewards
try:
    failed = repr(score(["assay"], [(JOB["refused"], "")]))
except ItemsFailed as error:
    failed = type(error).__name__
(floored,) = score(["assay_async"], [(JOB["refused"], "")])
print(json.dumps({"rewards": rewards, "signals": signals, "failed": failed, "floored": floored}))
