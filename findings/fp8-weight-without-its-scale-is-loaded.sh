#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0: an FP8 weight whose scale is missing is loaded as its bare codes.
#
# FP8 codes mean nothing without their scale: they reach 448, whatever the weight was. If weight_scale_inv of a layer is
# not in the file, Fp8Dequantize takes the codes themselves as the weight. Neither the loading report nor a message
# names the layer. A reward model of which one shard was converted badly still gives finite, plausible scores.
# Seen: the largest weight is 448 instead of 0.08; missing_keys is empty.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 2>/dev/null
venv/bin/python - 2>messages <<'PY'
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

torch.manual_seed(0)
name = "model.layers.0.self_attn.q_proj.weight"
shape = dict(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1, pad_token_id=0)).save_pretrained("fp8")
stored = {}
for key, weight in load_file("fp8/model.safetensors").items():
    if "proj" not in key:
        stored[key] = weight
        continue
    scale = weight.abs().max() / 448
    stored[key], stored[key.replace("weight", "weight_scale_inv")] = (weight / scale).to(torch.float8_e4m3fn), scale[None, None]
    if key == name:
        largest = weight.abs().max().item()
del stored[name.replace("weight", "weight_scale_inv")]
save_file(stored, "fp8/model.safetensors", metadata={"format": "pt"})
path = pathlib.Path("fp8/config.json")
quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))

model, report = AutoModelForSequenceClassification.from_pretrained(
    "fp8", dtype=torch.float32, output_loading_info=True
)
loaded = model.get_parameter(name).abs().max().item()
with torch.inference_mode():
    logit = model(input_ids=torch.tensor([[5, 6, 7]])).logits.item()
print(f"largest weight {loaded:.0f} instead of {largest:.2f}; missing {sorted(report['missing_keys'])}; logit {logit:.3f}")
assert loaded == 448 and largest < 0.2 and not report["missing_keys"] and not report["unexpected_keys"]
print("as described")
PY
! grep -qE "q_proj" messages
