#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0: Gemma 2 is loaded without the soft cap on its attention logits.
#
# The configuration has attn_logit_softcapping, and the model was trained with it. The default attention is PyTorch's
# scaled_dot_product_attention, which knows no soft cap; the argument is dropped. Only eager, flex and flash attention
# apply it. So a Gemma 2 reward model gives other scores than on a server that does, such as vLLM. Nothing is printed.
# Seen: the default is "sdpa". Its logit is that of eager attention without a cap (-4.478571). With the cap of the
# configuration it would be -4.478426.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 2>/dev/null
venv/bin/python - 2>messages <<'PY'
import torch
from transformers import AutoModelForSequenceClassification, Gemma2Config, Gemma2ForSequenceClassification

torch.manual_seed(0)
shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
config = Gemma2Config(
    **shape, head_dim=8, num_key_value_heads=2, num_labels=1, pad_token_id=0, initializer_range=0.5
)
Gemma2ForSequenceClassification(config).save_pretrained("reward")


def load(**options):
    return AutoModelForSequenceClassification.from_pretrained("reward", **options).eval()


def logit(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[5, 6, 7, 9, 11]])).logits.item()


plain = load()
default, capped = logit(plain), logit(load(attn_implementation="eager"))
uncapped = logit(load(attn_implementation="eager", attn_logit_softcapping=None))
print("default:", plain.config._attn_implementation, "with cap", plain.config.attn_logit_softcapping)
print(f"logits: default {default:.6f}, eager {capped:.6f}, eager without a cap {uncapped:.6f}")
assert plain.config._attn_implementation == "sdpa" and plain.config.attn_logit_softcapping == 50.0
assert abs(default - uncapped) < 1e-5 < 1e-4 < abs(default - capped)
print("as described")
PY
! grep -qiE "softcap|soft cap|eager" messages
