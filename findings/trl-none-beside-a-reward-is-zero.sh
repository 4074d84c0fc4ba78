#!/usr/bin/env bash
# trl 1.16.0, transformers 5.19.0: None from a reward function of GRPOTrainer is skipped, or is the number 0, as the
# other reward functions decide.
#
# None says that a function has no reward for a completion. Where all functions return None, TRL leaves the completion
# out of its group's mean, gives it advantage 0 and warns. Where another function returns a number, None counts as 0 in
# the weighted sum. With rewards around 5 the completion then has by far the lowest advantage, for a failure of the
# scorer. There is no warning, and the logged mean of that function (5.0) hides it.
# Seen: advantages [0, 0, 0, 0] for the function alone; [-1.5, 0.5, 0.5, 0.5] beside one that returns 1.0 for all.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 trl==1.16.0 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

law = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<eos>", "a", "b"])}, unk_token="<pad>"))
law.pre_tokenizer = pre_tokenizers.Whitespace()
shape = dict(vocab_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


def quality(completions, **_):  # its server failed for the first completion
    return [None] + [5.0] * (len(completions) - 1)


def polite(completions, **_):
    return [1.0] * len(completions)


class Observed(GRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        scored = super()._generate_and_score_completions(inputs)
        self.seen = [round(one, 3) for one in scored["advantages"].tolist()]
        return scored


def advantages(*functions):
    torch.manual_seed(0)
    options = dict(max_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True)
    trainer = Observed(
        model=LlamaForCausalLM(LlamaConfig(**shape, pad_token_id=0, eos_token_id=1)),
        reward_funcs=list(functions),
        args=GRPOConfig(
            "out", **options, per_device_train_batch_size=4, num_generations=4, max_completion_length=4, logging_steps=1
        ),
        train_dataset=Dataset.from_list([{"prompt": "a b"}] * 4),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=law, eos_token="<eos>", pad_token="<pad>"),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.seen, trainer.state.log_history[0]["rewards/quality/mean"]


alone, both = advantages(quality), advantages(quality, polite)
print("alone (advantages, logged mean):", *alone)
print("beside another function:        ", *both)
assert alone == ([0.0, 0.0, 0.0, 0.0], 5.0)
assert both == ([-1.5, 0.5, 0.5, 0.5], 5.0)
print("as described")
PY
