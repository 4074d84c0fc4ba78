"""Rollouts by a real vLLM engine: tokens and log-probabilities are those of the policy that was pushed."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from assay_training.config.model import Lora
from assay_training.data.sft_examples import SftExample
from assay_training.models.actor import Actor
from assay_training.rollout.completion import Ids
from assay_training.rollout.engines.base import Sampling
from assay_training.rollout.engines.vllm import VllmEngine
from tests.training.test_ppo import FP32

pytestmark = pytest.mark.vllm
POLICY = Path(__file__).parents[2] / "examples" / "pipeline" / "policy"
LORA = Lora(
    r=16, alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
)
CPU = torch.device("cpu")
EOS = AutoTokenizer.from_pretrained(POLICY).eos_token_id


def adapter(directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    actor = Actor(POLICY, LORA, CPU, 1.0)
    with torch.no_grad():
        for parameter in actor.policy.parameters():
            parameter.normal_(std=0.03)
    actor.policy.save_adapter(directory)
    return directory


def test_vllm_samples_from_every_adapter_that_is_pushed(tmp_path: Path) -> None:
    """Greedy tokens are PEFT's, sampled log-probabilities the trainer's, both after a second push."""
    prompts: list[Ids] = [tuple(range(20, 40)), (50, 51, 52), tuple(range(100, 107))]
    bare = tmp_path / "policy"  # no tokenizer is there, so none is read
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(POLICY / name, bare / name)
    greedy = VllmEngine(bare, Sampling(24, 0, EOS), 128, LORA.r)
    warm = Sampling(24, 0.8, EOS)
    for seed in (1, 2):
        path = adapter(tmp_path / f"step-{seed}", seed)
        greedy.push(path)
        peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32), path).eval()
        for prompt, completion in zip(prompts, greedy.generate(prompts, seed=1), strict=True):
            ids = peft.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=EOS)
            assert completion.ids == tuple(ids[0, len(prompt) :].tolist())
        greedy.sampling = warm
        completions = greedy.generate(prompts * 4, seed=seed)
        greedy.sampling = Sampling(24, 0, EOS)
        assert len({completion.ids for completion in completions}) > len(prompts)  # a seed of its own for each
        assert len(greedy.generate([tuple(range(20, 120))] * 100, seed=1)) == 100  # more than one forward holds
        actor = Actor(POLICY, LORA, CPU, warm.temperature)
        actor.policy.load_adapter(path)
        given = [SftExample.of(c.prompt, c.ids) for c in completions]
        for completion, look in zip(completions, actor.compute_old_outputs(given, FP32), strict=True):
            assert look.logprobs.tolist() == pytest.approx(completion.logprobs, abs=2e-3)
            assert completion.finish_reason == ("stop" if completion.ids[-1] == EOS else "length")
    greedy.close()


HOLDS_AN_ENGINE = f"""
import time
from pathlib import Path
from assay_training.rollout.engines.base import Sampling
from assay_training.rollout.engines.vllm import VllmEngine
engine = VllmEngine(Path({str(POLICY)!r}), Sampling(4, 1.0, {EOS}), 64, 8)
engine.generate([(20, 21)], 1)
print("ready", flush=True)
time.sleep(600)
"""


def descendants(pid: int) -> list[int]:
    children = [int(c) for file in Path(f"/proc/{pid}/task").glob("*/children") for c in file.read_text().split()]
    return children + [further for child in children for further in descendants(child)]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_killed_run_leaves_no_engine_behind() -> None:
    """A run that is killed and started again needs the memory."""
    with subprocess.Popen([sys.executable, "-c", HOLDS_AN_ENGINE], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert any(line == "ready\n" for line in run.stdout)
        left = descendants(run.pid)
        assert left
        run.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while any(map(alive, left)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, left))
