#!/usr/bin/env bash
# trl 1.16.0, transformers 5.19.0: GRPOTrainer shows its reward model a cut-off completion as a finished one.
#
# The completion is decoded without special tokens. For a conversation, it is rendered by the reward model's chat
# template, which ends every message with its end-of-turn token. So a completion that max_completion_length cut off in
# the middle reaches the reward model with the token that the policy never wrote. A reward model cannot tell from
# its input that it was cut off. mask_truncated_completions changes the loss, and not what is scored.
# Seen: all completions have max_completion_length tokens and no <eos>; every row of the reward model ends with <eos>.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 trl==1.16.0 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers import PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

WORDS = ["<pad>", "<eos>", "user", "assistant", *"abcdefghijkl"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
law = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
law.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=law, eos_token="<eos>", pad_token="<pad>", chat_template=TEMPLATE)
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0)
config = LlamaConfig(vocab_size=len(WORDS), eos_token_id=1, **shape)
torch.manual_seed(0)
policy = LlamaForCausalLM(config)
reward = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(WORDS), num_labels=1, **shape))
rows, completions = [], []
reward.register_forward_pre_hook(lambda _, __, inputs: rows.extend(inputs["input_ids"].tolist()), with_kwargs=True)


def observe(completion_ids, **_):
    completions.extend(completion_ids)
    return [0.0] * len(completion_ids)


options = dict(max_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True)
trainer = GRPOTrainer(
    model=policy,
    reward_funcs=[reward, observe],
    reward_processing_classes=[tokenizer, None],
    args=GRPOConfig(
        "out",
        **options,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=5,
        generation_kwargs={"suppress_tokens": [0, 1]},  # no completion ends by itself
        mask_truncated_completions=True,
    ),
    train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "a b"}]}] * 4),
    processing_class=tokenizer,
)
trainer.remove_callback(PrinterCallback)
trainer.train()
print("generated:   ", tokenizer.decode(completions[0]))
print("reward model:", tokenizer.decode(rows[0]))
assert len(completions) == len(rows) == 4
assert all(len(one) == 5 and 1 not in one for one in completions)
assert rows == [[2, 4, 5, 1, 3, *one, 1] for one in completions]
print("as described")
PY
