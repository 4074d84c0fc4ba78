#!/usr/bin/env bash
# peft 0.21.2, transformers 5.19.0: after adding tokens, whether save_pretrained keeps the new embedding depends on
# whether the base model has a name.
#
# With a base that was loaded from a directory, PEFT notices that the vocabulary was resized, and saves the embedding
# with the adapter. With the same model made from a configuration (name_or_path is ""), it saves the LoRA tensors alone.
# The trained rows of the added tokens are gone. Nothing is raised.
# Seen: the adapter of the named base has embed_tokens.weight, the other one has not.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 peft==0.21.2 2>/dev/null
venv/bin/python - <<'PY'
import warnings

from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForSequenceClassification

warnings.simplefilter("ignore")
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
)
nameless = LlamaForSequenceClassification(config)
nameless.save_pretrained("base")
named = LlamaForSequenceClassification.from_pretrained("base")


def saved(model, path):
    model.resize_token_embeddings(66, mean_resizing=False)
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).save_pretrained(path)
    with safe_open(f"{path}/adapter_model.safetensors", "pt") as file:
        return sorted(file.keys())


with_name, without = saved(named, "a"), saved(nameless, "b")
print("named base:   ", with_name)
print("nameless base:", without)
assert any("embed_tokens" in name for name in with_name)
assert not any("embed_tokens" in name for name in without)
print("as described")
PY
