#!/usr/bin/env bash
# peft 0.21.2, transformers 5.19.0: a LoRA with overlapping alpha_pattern keys computes something else once it is saved
# and loaded again.
#
# PEFT takes the first pattern that matches a module. save_pretrained writes adapter_config.json with its keys sorted,
# patterns included, so after loading another pattern can be the first. The scale of the layer changes, no tensor has
# another shape, and nothing is raised or printed.
# Seen: alpha_pattern {"layers\.0\..*": 64, ".*": 16}: layer 0 has scale 16.0 in training and 4.0 after loading.
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


def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    return LlamaForSequenceClassification(config).eval()


def scale(model):
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    return layer.scaling["default"]


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[5, 6, 7]])).logits


patterns = {r"layers\.0\..*": 64, ".*": 16}
config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["q_proj"], alpha_pattern=patterns)
trained = get_peft_model(base(), config).eval()
for name, parameter in trained.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.2)
trained.save_pretrained("adapter")
loaded = PeftModel.from_pretrained(base(), "adapter").eval()
print("scale of layer 0:", scale(trained), "in training,", scale(loaded), "after loading")
print("logits:", logits(trained).tolist(), logits(loaded).tolist())
assert (scale(trained), scale(loaded)) == (16.0, 4.0)
assert not torch.allclose(logits(trained), logits(loaded))
print("as described")
PY
