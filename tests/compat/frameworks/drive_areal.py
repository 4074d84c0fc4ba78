"""Score by AReaL's `RLVRWorkflow` with its pool of processes, and by the workflow that the page names."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from areal.api import ModelResponse
from areal.api.cli_args import GenerationHyperparameters
from areal.utils.dynamic_import import import_from_string
from areal.workflow.rlvr import RLVRWorkflow
from transformers import AutoTokenizer

from assay_client import ItemFailed

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


def build_workflow(folder: str) -> tuple[Any, dict[str, Any]]:
    """Return the class and the options that the page's settings name, whose file with the reward is in the folder."""
    code, settings = JOB["blocks"]["python"]
    (Path(folder) / "rewards.py").write_text(code)
    sys.path.insert(0, folder)
    named: dict[str, Any] = {}
    exec(settings, named)
    options = {**named["workflow_kwargs"], "gconfig": GenerationHyperparameters(), "tokenizer": TOKENIZER}
    return import_from_string(named["workflow"]), options


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kind, options = build_workflow(folder)
        texts = [text + end for text, end in JOB["completions"]]
        rewards = asyncio.run(score(kind(**options), texts))
        assert asyncio.run(score(RLVRWorkflow(**options), texts[:1])) == rewards[:1]
        failed = []
        for workflow in (kind, RLVRWorkflow):
            try:
                failed.append(repr(asyncio.run(score(workflow(**options), [JOB["refused"]]))))
            except ItemFailed as error:
                failed.append(type(error).__name__)
        print(json.dumps({"rewards": rewards, "failed": failed}))


if __name__ == "__main__":  # the pool may import this file
    main()
