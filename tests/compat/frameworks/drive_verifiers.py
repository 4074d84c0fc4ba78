"""Score traces by the `Task.score` of verifiers, which imports the functions that the page's configuration names."""

import asyncio
import json
import sys
import tomllib
from types import ModuleType
from typing import Any

from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.configs.task import TaskConfig
from verifiers.v1.errors import TaskError
from verifiers.v1.graph import MessageNode
from verifiers.v1.task import Task, TaskData
from verifiers.v1.trace import AgentInfo, ModelCall, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, UserMessage

JOB = json.load(sys.stdin)
PROMPT = JOB["prompt"][0]["content"]
(TOML,) = JOB["blocks"]["toml"]
file = ModuleType("rewards")
exec(JOB["blocks"]["python"][0], vars(file))
sys.modules[file.__name__] = file
REWARDS = tomllib.loads(TOML)["env"]["taskset"]["task"]["rewards"]
assert set(REWARDS) == {"assay"}
REWARDS["signals"] = {"fn": "rewards:signals", "weight": 0.5}
DATA = TaskData(prompt=PROMPT)
TASK = Task(DATA, TaskConfig.model_validate({"rewards": REWARDS}))


def build_trace(text: str, end: str) -> Any:
    return Trace(
        task=TraceTask(type="Task", data=DATA),
        agent=AgentInfo(config=AgentConfig()),
        nodes=[
            MessageNode(message=UserMessage(content=PROMPT)),
            MessageNode(parent=0, message=AssistantMessage(content=text), sampled=True),
        ],
        calls=[ModelCall(node=1, finish_reason="stop" if end else "length")],
    )


def score(text: str, end: str) -> dict[str, float | None]:
    """Return the rewards by name that verifiers records, and its error as `error`."""
    trace = build_trace(text, end)
    try:
        asyncio.run(TASK.score(trace))
    except TaskError as error:
        return {**trace.rewards, "error": str(error)}
    return {name: reward.score for name, reward in trace.rewards.items()}


rows = [score(*completion) for completion in JOB["completions"]]
rewards = [row.pop("assay") for row in rows]
print(json.dumps({"rewards": rewards, "signals": rows, "failed": score(JOB["refused"], "")}))
