"""Score by verl's `RewardLoopManager`, whose worker is a Ray actor: the flags of the page find the manager.

The flags are composed by Hydra with the configuration that verl's wheel has. A job with `router`, an address, is scored
by verl's built-in call of a reward model instead: `compute_score` of its worker.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import aiohttp
import numpy as np
import ray
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopManager, RewardLoopWorker, migrate_legacy_reward_impl
from verl.trainer.ppo.reward import get_custom_reward_fn

WIDTH = 24
JOB = json.load(sys.stdin)
TOKENIZER = AutoTokenizer.from_pretrained(JOB["policy"])
# Those of the page, for a job that has it.
MANAGER_FLAGS, FUNCTION_FLAGS = (block.split() for block in JOB.get("blocks", {"": ["", ""]})[""])


def build_config(flags: list[str]) -> DictConfig:
    """Compose verl's own configuration with flags of a command line."""
    own = [f"actor_rollout_ref.model.path={JOB['policy']}", "reward.num_workers=1"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return migrate_legacy_reward_impl(compose("ppo_trainer", overrides=[*own, *flags]))


def list_optional_flags(folder: str) -> list[str]:
    """Return the flags of the manager with those that the page's text names, for files and ids that exist here."""
    key = Path(folder) / "key"
    key.write_text("k-1\n")
    theirs = {
        "/run/secrets/assay": str(key),
        "http://gpu-0:8000,http://gpu-1:8000": f"{JOB['url']},{JOB['url'].replace('127.0.0.1', 'localhost')}",
        "151645": str(TOKENIZER.eos_token_id),
        "151643": "0",
    }
    flags = [flag for flag in JOB["inline"] if flag.startswith("+reward.reward_kwargs.")]
    assert [flag.partition("=")[0].rpartition(".")[2] for flag in flags] == ["url", "api_key_file", "eos_token_id"]
    for old, new in theirs.items():
        flags = [flag.replace(old, new) for flag in flags]
    return [*(flag for flag in MANAGER_FLAGS if ".url=" not in flag), *flags]


def build_batch(texts: list[str]) -> DataProto:
    """Build the batch after a rollout: prompts of three tokens with one pad, responses padded on the right."""
    lines = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    responses = [torch.tensor([*ids, *[TOKENIZER.pad_token_id] * (WIDTH - len(ids))]) for ids in lines]
    masks = [torch.tensor([0, 1, 1, *[1] * len(ids), *[0] * (WIDTH - len(ids))]) for ids in lines]
    prompts = np.empty(len(texts), dtype=object)
    prompts[:] = [JOB["prompt"]] * len(texts)
    tensors = {
        "prompts": torch.zeros(len(texts), 3, dtype=torch.long),
        "responses": torch.stack(responses),
        "attention_mask": torch.stack(masks),
    }
    return DataProto(batch=TensorDict(tensors, batch_size=len(texts)), non_tensor_batch={"raw_prompt": prompts})


def score(flags: list[str], texts: list[str]) -> DataProto:
    return RewardLoopManager(build_config(flags)).compute_rm_score(build_batch(texts))


def score_by_function(text: str) -> float:
    config = build_config(FUNCTION_FLAGS)
    function = get_custom_reward_fn(config)
    row = {"data_source": "d", "ground_truth": "g", "extra_info": {"prompt": JOB["prompt"][0]["content"]}}
    answer = asyncio.run(function(solution_str=text, **row))
    return float(answer["score"])


def score_by_the_page() -> tuple[list[float], str]:
    """Return the rewards by the manager, which those by other flags and by the function equal, and how it refuses."""
    ray.init(num_cpus=1, include_dashboard=False)
    texts = [text + end for text, end in JOB["completions"]]
    assert build_config(MANAGER_FLAGS).data.return_raw_chat
    answer = score(MANAGER_FLAGS, texts)
    rewards: list[float] = answer.batch["rm_scores"].sum(1).tolist()
    assert answer.non_tensor_batch["score"].astype(np.float32).tolist() == rewards
    with tempfile.TemporaryDirectory() as folder:
        again = score(list_optional_flags(folder), texts)
    assert again.batch["rm_scores"].sum(1).tolist() == rewards
    finished, end = JOB["completions"][0]
    assert end
    by_function = score_by_function(finished)
    assert np.float32(by_function) == np.float32(rewards[0])
    try:
        return rewards, repr(score(MANAGER_FLAGS, [JOB["refused"]]).batch["rm_scores"])
    except ray.exceptions.RayTaskError as error:
        return rewards, type(error.cause).__name__


def score_by_router() -> tuple[list[float], str]:
    """Return the rewards of the built-in call, one after the other, and how it fails."""
    worker = RewardLoopWorker(build_config(JOB["flags"]), JOB["router"])

    async def ask(texts: list[str]) -> list[float]:
        batch = build_batch(texts)
        rows = [await worker.compute_score(batch[index : index + 1]) for index in range(len(texts))]
        return [row["reward_score"] for row in rows]

    rewards = asyncio.run(ask([text + end for text, end in JOB["completions"]]))
    try:
        return rewards, repr(asyncio.run(ask([JOB["refused"]])))
    except aiohttp.ClientResponseError as error:
        return rewards, f"HTTP {error.status}"


rewards, failed = score_by_router() if "router" in JOB else score_by_the_page()
print(json.dumps({"rewards": rewards, "failed": failed}))
