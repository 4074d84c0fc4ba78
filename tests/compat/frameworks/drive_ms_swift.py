"""Score by ms-swift's `compute_rewards_per_func`, with the plugin and the flags of the page."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from swift.arguments import RLHFArguments
from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func
from swift.rlhf_trainers.utils import resolve_reward_funcs
from swift.utils import import_external_file
from transformers import HfArgumentParser

from assay_client import ItemsFailed
from assay_client.integrations.ms_swift import make_async_orm, make_orm

JOB = json.load(sys.stdin)
(PLUGIN,) = JOB["blocks"]["python"]
FLAGS = [flag.split() for flag in JOB["inline"] if flag.startswith("--reward_funcs ")]


def parse(plugin: str) -> list[list[str]]:
    """Return the names of rewards that ms-swift's parser reads from each flag of the page, and import the plugin."""
    parser = HfArgumentParser([RLHFArguments])
    names = []
    for flags in FLAGS:
        read = parser.parse_args(["--rlhf_type", "grpo", "--external_plugins", plugin, *flags])
        for file in read.external_plugins:
            import_external_file(file)
        names.append(read.reward_funcs)
    return names


with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "plugin.py"
    file.write_text(PLUGIN)
    (score_name,), signal_names = parse(str(file))
assert signal_names == JOB["signals"]
orms["assay_sync"] = make_orm(JOB["url"])
orms["assay_floor"] = make_async_orm(JOB["url"], floor=-10.0)


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


rewards, by_thread, *signals = score([score_name, "assay_sync", *signal_names], JOB["completions"])
assert by_thread == rewards
try:
    failed = repr(score([score_name], [(JOB["refused"], "")]))
except ItemsFailed as error:
    failed = type(error).__name__
(floored,) = score(["assay_floor"], [(JOB["refused"], "")])
print(json.dumps({"rewards": rewards, "signals": signals, "failed": failed, "floored": floored}))
