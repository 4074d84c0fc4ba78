"""Score by AReaL's `RLVRWorkflow`, whose rewards run in a pool of processes, and by the bridge's workflow."""

import asyncio
import json
import sys
from typing import Any

from areal.api import ModelResponse
from areal.api.cli_args import GenerationHyperparameters
from areal.workflow.rlvr import RLVRWorkflow
from transformers import AutoTokenizer

from assay_client import ItemFailed
from assay_client.integrations.areal import AssayWorkflow, make_reward_fn

JOB = json.load(sys.stdin)
TOKENIZER = AutoTokenizer.from_pretrained(JOB["policy"])


class Engine:
    """The place of the inference engine: it returns the given completion."""

    def __init__(self, text: str) -> None:
        self.ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]

    async def agenerate(self, request: Any) -> Any:
        return ModelResponse(
            input_tokens=request.input_ids,
            output_tokens=self.ids,
            output_logprobs=[0.0] * len(self.ids),
            output_versions=[0] * len(self.ids),
        )


async def score(workflow: Any, texts: list[str]) -> list[float]:
    row = {"messages": JOB["prompt"], "answer": "x"}
    return [(await workflow.arun_episode(Engine(text), row))["rewards"].item() for text in texts]


def main() -> None:
    reward_fn = make_reward_fn(JOB["url"], end_token=JOB["end"])
    options = {"reward_fn": reward_fn, "gconfig": GenerationHyperparameters(), "tokenizer": TOKENIZER}
    texts = [text + end for text, end in JOB["completions"]]
    rewards = asyncio.run(score(AssayWorkflow(**options), texts))
    assert asyncio.run(score(RLVRWorkflow(**options), texts[:1])) == rewards[:1]
    failed = []
    for workflow in (AssayWorkflow, RLVRWorkflow):
        try:
            failed.append(repr(asyncio.run(score(workflow(**options), [JOB["refused"]]))))
        except ItemFailed as error:
            failed.append(type(error).__name__)
    print(json.dumps({"rewards": rewards, "failed": failed}))


if __name__ == "__main__":  # the pool may import this file
    main()
