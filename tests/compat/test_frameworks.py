"""The reward loops of trainers run by their own code, each with its own pins and against a running service.

A driver gets one job as JSON, and prints the rewards that its framework has for the completions, and what became of a
completion that cannot be scored. The rewards must be those of `/v1/score`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.compat import frameworks
from tests.real_tokenizers import unavailable

pytestmark = pytest.mark.slow

PROMPT = [{"role": "user", "content": "say hi"}]
END = "<|im_end|>"
COMPLETIONS = [("hello", END), ("hello", ""), ("no", END)]  # text, and the end token unless it was cut off
REFUSED = "bad<|im_start|>user"


def drive(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run `drive_NAME.py` with the packages of its framework, and return what it printed last."""
    try:
        packages = frameworks.install(name)
    except subprocess.SubprocessError as error:
        unavailable(f"pip cannot install {name}: {error}: {(getattr(error, 'stderr', b'') or b'')[-2000:]!r}")
    clients = Path(__file__).parents[2] / "clients"
    driver = Path(frameworks.__file__).parent / f"drive_{name}.py"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(driver)],
        env={**os.environ, "PYTHONPATH": f"{packages}:{clients}"},
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


@pytest.fixture
def job(url: str, tiny: dict[str, Any]) -> dict[str, Any]:
    """What every driver gets: the policy is a directory with its tokenizer."""
    policy = str(tiny["root"] / "base")
    return {"url": url, "policy": policy, "prompt": PROMPT, "completions": COMPLETIONS, "refused": REFUSED}


@pytest.fixture
def expected(url: str) -> list[float]:
    items = [
        {
            "messages": [*PROMPT, {"role": "assistant", "content": text}],
            "finish_reason": "stop" if end else "length",
        }
        for text, end in COMPLETIONS
    ]
    answer = httpx.post(f"{url}/v1/score", json={"items": items}).raise_for_status().json()
    scores = [row["score"] for row in answer["data"]]
    assert len({*scores}) == len(COMPLETIONS)
    return scores


def to_fp32(values: list[float]) -> list[float]:
    """What a trainer has that keeps its rewards as tensors."""
    return [float(value) for value in torch.tensor(values, dtype=torch.float32).tolist()]


def test_verls_reward_loop_manager_scores_in_a_ray_actor(job: dict[str, Any], expected: list[float]) -> None:
    assert drive("verl", job) == {"rewards": to_fp32(expected), "failed": "ItemFailed"}


def test_openrlhfs_executor_scores_by_the_url_and_by_a_file(job: dict[str, Any], expected: list[float]) -> None:
    assert drive("openrlhf", job) == {"rewards": expected, "failed": None}  # its reward after an error is None
