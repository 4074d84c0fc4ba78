"""Score by the client function of LLaMA-Factory's PPO, at the address that its parser reads from the page."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import yaml
from transformers import AutoTokenizer, HfArgumentParser

JOB = json.load(sys.stdin)
TOKENIZER = AutoTokenizer.from_pretrained(JOB["policy"])
PROMPT = TOKENIZER.apply_chat_template(JOB["prompt"], tokenize=False, add_generation_prompt=True)


def skip_init(name: str) -> None:
    """Make a package of LLaMA-Factory importable without its `__init__`, which imports all trainers."""
    spec = importlib.util.find_spec("llamafactory")
    assert spec is not None
    root = Path(str(spec.origin)).parents[1]
    module = ModuleType(name)
    module.__path__ = [str(root.joinpath(*name.split(".")))]
    sys.modules[name] = module


for name in ("llamafactory.hparams", "llamafactory.train", "llamafactory.train.ppo", "llamafactory"):
    skip_init(name)
arguments = importlib.import_module("llamafactory.hparams.finetuning_args").FinetuningArguments
ppo = importlib.import_module("llamafactory.train.ppo.ppo_utils")

(block,) = JOB["blocks"]["yaml"]
(read,) = HfArgumentParser([arguments]).parse_dict(yaml.safe_load(block))
assert (read.stage, read.reward_model_type) == ("ppo", "api")
messages = [PROMPT + text + end for text, end in JOB["completions"]]
rewards = ppo.get_rewards_from_server(read.reward_model, messages).tolist()
try:
    failed = repr(ppo.get_rewards_from_server(read.reward_model, [PROMPT + JOB["refused"]]))
except KeyError as error:
    failed = repr(error)
print(json.dumps({"rewards": rewards, "failed": failed}))
