"""Train a policy with TRL's GRPOTrainer, with rewards over HTTP from a running service.

    assay serve                                     # in an environment of its own, or on another machine
    python examples/trl_grpo.py --policy Qwen/Qwen3-0.6B --url http://127.0.0.1:8000 prompts.jsonl

Each row of the file has a `prompt`, as text or as messages. TRL is installed with `pip install '.[compat]'`.
"""

import argparse
from collections.abc import Mapping

from datasets import Dataset, load_dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from assay_client.integrations.trl import reward_function


def train(policy: str, url: str, prompts: Dataset, out: str, **options: object) -> list[Mapping[str, float]]:
    """Train the policy, and return what TRL logs in each step; `options` are those of `GRPOConfig`."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=reward_function(url, eos_token_id=tokenizer.eos_token_id),
        args=GRPOConfig(output_dir=out, logging_steps=1, **options),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.state.log_history


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("prompts", help="a file of JSON lines")
    parser.add_argument("--policy", required=True, help="a model of the hub, or a directory")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the address of the service")
    parser.add_argument("--out", default="runs/grpo", help="the directory for checkpoints")
    parser.add_argument("--steps", type=int, default=-1, help="the number of steps; one epoch if it is not given")
    parser.add_argument("--cpu", action="store_true", help="train without a GPU")
    given = parser.parse_args(arguments)
    prompts = load_dataset("json", data_files=given.prompts, split="train")
    options = {"use_cpu": True, "bf16": False} if given.cpu else {}
    train(given.policy, given.url, prompts, given.out, max_steps=given.steps, num_train_epochs=1, **options)


if __name__ == "__main__":
    main()
