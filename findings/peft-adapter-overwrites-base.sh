#!/usr/bin/env bash
# peft 0.21.2, transformers 5.19.0: loading a second LoRA adapter changes the output of the first one, and of the base.
#
# An adapter file may hold an embedding: PEFT saves it by itself when the training script resized the vocabulary, and
# `save_embedding_layers=True` asks for it. load_adapter copies that embedding over the one of the base, which all
# adapters of the model share. Switching back to the first adapter, or disabling adapters, keeps the foreign embedding.
# Nothing is raised and nothing is printed. Only a new from_pretrained restores the base.
# Seen: the base's logits differ before and after load_adapter; the embedding equals the one of the last file.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 peft==0.21.2 2>/dev/null
venv/bin/python - <<'PY'
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification

warnings.simplefilter("ignore")
shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)


def base():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1, pad_token_id=0)).eval()


def adapter(path, *, embedding):
    model = get_peft_model(base(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"]))
    if embedding:
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1.0)
    model.save_pretrained(path, save_embedding_layers=embedding)


adapter("first", embedding=False)
adapter("second", embedding=True)
model = PeftModel.from_pretrained(base(), "first", adapter_name="first").eval()
ids = torch.tensor([[5, 6, 7]])


def logit():
    with torch.inference_mode():
        return model(input_ids=ids).logits.item()


def bare_logit():
    with model.disable_adapter():
        return logit()


before, bare_before = logit(), bare_logit()
model.load_adapter("second", adapter_name="second")
model.set_adapter("first")
after, bare_after = logit(), bare_logit()
print(f"adapter 'first': {before:.6f} before, {after:.6f} after 'second' was loaded")
print(f"no adapter:      {bare_before:.6f} before, {bare_after:.6f} after")
assert before != after and bare_before != bare_after
assert torch.equal(model.get_input_embeddings().weight, base().get_input_embeddings().weight + 1.0)
print("as described")
PY
