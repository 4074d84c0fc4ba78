"""The reward loops of trainers run by their own code, each with its own pins and against a running service.

A driver gets one job as JSON, and prints the rewards that its framework has for the completions, and what became of a
completion that cannot be scored. The rewards must be those of `/v1/score`. Settings, flags and code are those of the
trainer's page, read by the framework's own parser.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from assay_service import create_app, read_settings
from tests.compat import frameworks
from tests.compat.conftest import Serve, run_app
from tests.compat.examples import DOCS, read_blocks
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
    return {
        "url": url,
        "policy": policy,
        "prompt": PROMPT,
        "completions": COMPLETIONS,
        "refused": REFUSED,
        "end": END,
        "signals": ["pref", "abs"],
    }


def read_page(page: str, url: str) -> dict[str, Any]:
    """The blocks of a page by their kind, and the code in its text, with the address and the names of this service."""
    theirs = {"http://127.0.0.1:8000": url, "http://HOST:PORT": url, '"preference"': '"pref"', '"absolute"': '"abs"'}
    theirs |= {'"crs"': '"mix"', "model=crs": "model=mix", "preference absolute": "pref abs"}

    def replace(text: str) -> str:
        for old, new in theirs.items():
            text = text.replace(old, new)
        return text

    blocks: dict[str, list[str]] = {}
    for kind, text in read_blocks(page):
        blocks.setdefault(kind, []).append(replace(text))
    inline = re.findall(r"`([^`\n]+)`", (DOCS / f"{page}.md").read_text())
    return {"blocks": blocks, "inline": [replace(text) for text in inline]}


@pytest.fixture
def native(url: str) -> list[dict[str, Any]]:
    """The rows of `/v1/score` for the completions."""
    items = [
        {
            "messages": [*PROMPT, {"role": "assistant", "content": text}],
            "finish_reason": "stop" if end else "length",
        }
        for text, end in COMPLETIONS
    ]
    answer = httpx.post(f"{url}/v1/score", json={"items": items}).raise_for_status().json()
    rows: list[dict[str, Any]] = answer["data"]
    assert len({row["score"] for row in rows}) == len(COMPLETIONS)
    return rows


@pytest.fixture
def expected(native: list[dict[str, Any]]) -> list[float]:
    return [row["score"] for row in native]


def to_fp32(values: list[float]) -> list[float]:
    """What a trainer has that keeps its rewards as tensors."""
    return [float(value) for value in torch.tensor(values, dtype=torch.float32).tolist()]


def test_areals_workflows_score_and_refuse_a_rollout_without_a_score(
    job: dict[str, Any], expected: list[float]
) -> None:
    """The page's workflow, and AReaL's own with its pool of processes."""
    job |= read_page("trainer-areal", job["url"])
    assert drive("areal", job) == {"rewards": to_fp32(expected), "failed": ["ItemFailed", "ItemFailed"]}


def test_jinas_reranker_of_langchain_and_of_llama_index_ranks(job: dict[str, Any], url: str) -> None:
    body = {"model": "mix", "query": "say hi", "documents": ["hello", "no"]}
    ranked = httpx.post(f"{url}/compat/jina/v1/rerank", json=body).raise_for_status().json()["results"]
    by_url = [[body["documents"][row["index"]], row["relevance_score"]] for row in ranked]
    answer = drive("rerank", job)
    assert answer["ranked"] == [by_url, by_url]
    assert all("control token" in error for error in answer["failed"])


def test_llama_factory_reads_its_settings(job: dict[str, Any], expected: list[float]) -> None:
    job |= read_page("trainer-llama-factory", job["url"])
    assert drive("llama_factory", job) == {"rewards": to_fp32(expected), "failed": "KeyError('scores')"}


def test_ms_swifts_functions_score_together_and_one_without_floor_ends_the_run(
    job: dict[str, Any], native: list[dict[str, Any]], expected: list[float]
) -> None:
    job |= read_page("trainer-ms-swift", job["url"])
    assert drive("ms_swift", job) == {
        "rewards": to_fp32(expected),
        "signals": [to_fp32([row["signals"][name]["logit"] for row in native]) for name in job["signals"]],
        "failed": "ItemsFailed",
        "floored": [-10.0],
    }


def test_nemo_gyms_agent_gets_rewards_from_the_service_at_its_root(
    job: dict[str, Any], serve: Serve, expected: list[float]
) -> None:
    answer = drive("nemo_gym", {**job, **read_page("trainer-nemo-gym", ""), "url": serve(root="nemo_gym").url})
    assert answer == {"rewards": expected, "failed": 500}  # of the agent, whose call of `/verify` failed


def test_openrlhfs_executor_scores_by_the_url_and_by_a_file(job: dict[str, Any], expected: list[float]) -> None:
    job |= read_page("trainer-openrlhf", job["url"])
    assert drive("openrlhf", job) == {"rewards": expected, "failed": None}  # its reward after an error is None


def test_verifiers_task_records_rewards_and_none_after_an_error(
    job: dict[str, Any], native: list[dict[str, Any]], expected: list[float]
) -> None:
    answer = drive("verifiers", job | read_page("trainer-verifiers", job["url"]))
    assert answer["rewards"] == expected
    assert answer["signals"] == [{name: row["signals"][name]["logit"] for name in job["signals"]} for row in native]
    error = answer["failed"].pop("error")
    assert "ItemFailed" in error
    assert answer["failed"] == {"assay": None, "signals": None}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verls_built_in_call_of_a_reward_model_scores_at_the_wire_of_its_engine(
    job: dict[str, Any], tiny: dict[str, Any], tmp_path: Path, engine: str
) -> None:
    """It calls the model by its path, and removes EOS, so that a completion that was cut off counts as finished."""
    directory = str(tiny["root"] / "base")
    signal = {"base": directory, "kind": "preference", "eos": "template", "unfinished": "score"}
    (tmp_path / "service.yaml").write_text(json.dumps({"signals": {"rm": signal}}))
    with run_app(create_app(read_settings(tmp_path / "service.yaml"))) as served:
        items = [{"prompt": PROMPT, "completion": text} for text, _ in COMPLETIONS]
        rows = httpx.post(f"{served.url}/v1/score", json={"items": items}).raise_for_status().json()["data"]
        answer = drive(
            "verl",
            {
                **job,
                "router": f"{served.url.removeprefix('http://')}/compat/{engine}",
                "flags": [
                    "reward.reward_model.enable=True",
                    f"reward.reward_model.model_path={directory}",
                    f"reward.reward_model.rollout.name={engine}",
                ],
            },
        )
    scores = [row["score"] for row in rows]
    assert scores[0] == scores[1] != scores[2]
    assert answer == {"rewards": scores, "failed": "HTTP 400"}


def test_verls_reward_loop_manager_scores_in_a_ray_actor(job: dict[str, Any], expected: list[float]) -> None:
    job |= read_page("trainer-verl", job["url"])
    assert drive("verl", job) == {"rewards": to_fp32(expected), "failed": "ItemFailed"}
