"""Score by OpenRLHF's `SingleTurnAgentExecutor`, by the URL of the wire and by a file with a reward function."""

import asyncio
import json
import sys
import tempfile
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


with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "reward.py"
    file.write_text(
        "from assay_client.integrations.openrlhf import make_reward_func\n"
        f"reward_func = make_reward_func({JOB['url']!r})\n"
    )
    by_file = SingleTurnAgentExecutor(str(file))
by_url = SingleTurnAgentExecutor(f"{JOB['url']}/compat/openrlhf/get_reward")
texts = [text + end for text, end in JOB["completions"]]
rewards = [score(by_file, text) for text in texts]
assert [score(by_url, text) for text in texts] == rewards
failed = score(by_file, JOB["refused"])
print(json.dumps({"rewards": rewards, "failed": failed if failed is None else repr(failed)}))
