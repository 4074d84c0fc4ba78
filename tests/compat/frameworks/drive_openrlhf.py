"""Score by OpenRLHF's `SingleTurnAgentExecutor`, by the URL and by the file that the page's flags name."""

import argparse
import ast
import asyncio
import importlib.util
import json
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

JOB = json.load(sys.stdin)
TOKENIZER = AutoTokenizer.from_pretrained(JOB["policy"])
PROMPT = TOKENIZER.apply_chat_template(JOB["prompt"], tokenize=False, add_generation_prompt=True)
PARAMS = SimpleNamespace(max_tokens=None, logprobs=None)


class Engine:
    """The place of vLLM: it returns the given completion."""

    def __init__(self, text: str) -> None:
        self.ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]

    async def generate(self, *_: object, **__: object) -> Any:
        output = SimpleNamespace(token_ids=self.ids, text="", finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def score(executor: Any, text: str) -> float | None:
    answer = asyncio.run(executor.execute(PROMPT, "label", PARAMS, 128, TOKENIZER, Engine(text)))
    # A list of one from the function, a number from the address; None after an error, which the executor logs.
    reward: float | None = answer["reward"][0] if isinstance(answer["reward"], list) else answer["reward"]
    return reward


def read_url(flags: list[str]) -> list[str]:
    """Return the addresses that OpenRLHF's program reads from flags, after its checks; it ends with `train(args)`."""
    spec = importlib.util.find_spec("openrlhf.cli")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "train_ppo_ray.py"  # importing it needs vLLM
    (main,) = (node for node in ast.parse(source.read_text()).body if isinstance(node, ast.If))
    found: list[Any] = []
    names: dict[str, Any] = {"argparse": argparse, "datetime": datetime, "train": found.append}
    sys.argv = [str(source), "--actor.model_name_or_path", JOB["policy"], *flags]
    exec(compile(ast.Module(main.body, []), str(source), "exec"), names)
    chat.append(found[0].data.apply_chat_template)
    addresses: list[str] = found[0].reward.remote_url
    return addresses


chat: list[bool] = []
(flags,) = (block.split() for block in JOB["blocks"][""])
(code,) = JOB["blocks"]["python"]
(file_flags,) = (flag.split() for flag in JOB["inline"] if flag.startswith("--reward.remote_url "))
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    Path("reward.py").write_text(code)
    (name,) = read_url(file_flags)
    by_file = SingleTurnAgentExecutor(name)
by_url = SingleTurnAgentExecutor(*read_url(flags))
assert chat == [False, True]
texts = [text + end for text, end in JOB["completions"]]
rewards = [score(by_file, text) for text in texts]
assert [score(by_url, text) for text in texts] == rewards
failed = score(by_file, JOB["refused"])
print(json.dumps({"rewards": rewards, "failed": failed if failed is None else repr(failed)}))
