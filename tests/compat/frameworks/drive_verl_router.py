"""Score by verl's built-in call of a reward model: `compute_score` of a worker with the address of a router."""

import asyncio
import json
import sys

import aiohttp
import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

WIDTH = 24
JOB = json.load(sys.stdin)
TOKENIZER = AutoTokenizer.from_pretrained(JOB["policy"])
CONFIG = {
    "actor_rollout_ref": {"model": {"path": JOB["policy"], "tokenizer_path": None}},
    "reward": {
        "num_workers": 1,
        "reward_kwargs": {"url": [JOB["url"]]},
        "reward_model": {"enable": False, "enable_resource_pool": False, **JOB.get("reward_model", {})},
        "custom_reward_function": {"path": None, "name": None, "reward_kwargs": {}},
        "reward_manager": {
            "source": "importlib",
            "name": "AssayRewardManager",
            "module": {"path": "pkg://assay_client.integrations.verl", "name": None},
        },
        "sandbox_fusion": {"url": None, "max_concurrent": 1, "memory_limit_mb": 1},
    },
}


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


def score_by_router(texts: list[str]) -> list[float]:
    """Return the rewards of the built-in call, one after the other."""
    worker = RewardLoopWorker(OmegaConf.create(CONFIG), JOB["router"])
    batch = build_batch(texts)

    async def ask() -> list[float]:
        rows = [await worker.compute_score(batch[index : index + 1]) for index in range(len(texts))]
        return [row["reward_score"] for row in rows]

    return asyncio.run(ask())


rewards = score_by_router([text + end for text, end in JOB["completions"]])
try:
    failed = repr(score_by_router([JOB["refused"]]))
except aiohttp.ClientResponseError as error:
    failed = f"HTTP {error.status}"
print(json.dumps({"rewards": rewards, "failed": failed}))
