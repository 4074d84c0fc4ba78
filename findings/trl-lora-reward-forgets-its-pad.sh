#!/usr/bin/env bash
# trl 1.16.0, peft 0.21.2, transformers 5.19.0: a LoRA reward model of RewardTrainer gives other scores once it is
# loaded again.
#
# RewardTrainer pads with the tokenizer's pad, else its EOS, and sets that id in the model's configuration. The head
# reads the last token that is not the pad: where pad is EOS and a text ends with EOS, the token before it. save_model
# writes the adapter, the head and the tokenizer, but no config.json. PeftModel.from_pretrained takes the base's
# configuration, which has another pad or none, so the head reads the EOS itself. Nothing is raised.
# Seen: the trainer's model and the loaded one differ; with pad_token_id set by hand they agree.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 peft==0.21.2 trl==1.16.0 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

law = Tokenizer(models.BPE())
law.pre_tokenizer, law.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
law.train_from_iterator(
    ["How do I fix a flat tyre? Take the wheel off."],
    trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unused>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    ),
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=law, eos_token="<eos>")
torch.manual_seed(0)
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=1)
config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, initializer_range=0.2, **shape)
AutoModelForSequenceClassification.from_config(config).save_pretrained("base")
base = AutoModelForSequenceClassification.from_pretrained("base", dtype=torch.float32)
pairs = Dataset.from_list([{"prompt": "Flat tyre?", "chosen": " Take the wheel off.", "rejected": " No."}] * 8)
trainer = RewardTrainer(
    model=base,
    args=RewardConfig("out", max_steps=2, report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=4),
    train_dataset=pairs,
    processing_class=tokenizer,
    peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"]),
)
trainer.train()
trainer.save_model("adapter")
ids = torch.tensor([tokenizer("Flat tyre? No.")["input_ids"] + [tokenizer.eos_token_id]])


def score(model):
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits.item()


def loaded():
    return PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained("base", dtype=torch.float32), "adapter"
    )


trained, again, declared = trainer.model, loaded(), loaded()
declared.config.pad_token_id = tokenizer.eos_token_id
print("pad in training:", trained.config.pad_token_id, " after loading:", again.config.pad_token_id)
print("score in training:", score(trained), " after loading:", score(again), " with the pad:", score(declared))
assert abs(score(trained) - score(again)) > 1e-3
assert abs(score(trained) - score(declared)) < 1e-5
print("as described")
PY
