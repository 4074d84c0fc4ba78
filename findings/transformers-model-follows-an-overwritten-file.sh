#!/usr/bin/env bash
# transformers 5.19.0, safetensors 0.8.0, torch 2.13.0: a model that was loaded on a CPU changes when its file is
# overwritten in place.
#
# from_pretrained maps model.safetensors into memory and keeps the mapping as the weights, also in the long run and
# without any option. A copy of another checkpoint over the file ("cp", "rsync --inplace") changes what the process
# computes from then on. Nothing is raised. A file that is replaced by a rename changes nothing.
# Seen: the same input has another logit after the copy, and the old one after a rename.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 safetensors==0.8.0 2>/dev/null
venv/bin/python - <<'PY'
import os
import shutil

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_labels=1,
    pad_token_id=0,
)
for name in ("served", "kept", "other"):
    torch.manual_seed(name == "other")
    LlamaForSequenceClassification(config).save_pretrained(name)


@torch.inference_mode()
def logit(model):
    return model(torch.tensor([[5, 6, 7]])).logits.item()


copied, renamed = (LlamaForSequenceClassification.from_pretrained(name) for name in ("served", "kept"))
before = logit(copied), logit(renamed)
shutil.copyfile("other/model.safetensors", "served/model.safetensors")
os.replace("other/model.safetensors", "kept/model.safetensors")
after = logit(copied), logit(renamed)
print("copied over:", before[0], "->", after[0])
print("renamed over:", before[1], "->", after[1])
assert before[0] == before[1]
assert after[0] != before[0]
assert after[1] == before[1]
print("as described")
PY
