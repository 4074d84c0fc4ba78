"""`assay train ppo`: a tiny policy, a tiny service on loopback; what must hold at the first step, and after a kill."""

import copy
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
import yaml
from transformers import AutoModelForCausalLM

from assay_client.client import RewardClient
from assay_client.in_process import AppTransport
from assay_client.types import Item
from assay_service import settings
from assay_service.api.app import create_app
from assay_training.algorithms.ppo import compute_masked_sums
from assay_training.config.base import ConfigError, read
from assay_training.config.model import Adam, Lora
from assay_training.config.ppo import Ppo, PpoConfig
from assay_training.config.rollout import Reward
from assay_training.data.sft_examples import SftExample
from assay_training.distributed.processes import get_accelerator
from assay_training.loop.step import accumulate
from assay_training.models.actor import Actor, PolicyOutputs
from assay_training.models.batches import autocast
from assay_training.rl.clipped import TALLY_NAMES, ClippedObjective
from assay_training.rl.engine_check import EngineError
from assay_training.rl.experience import Experience
from assay_training.rl.ppo import PpoRun
from assay_training.rollout.completion import Completion, Ids
from assay_training.rollout.engines.base import Sampling
from assay_training.rollout.engines.transformers import TransformersEngine
from assay_training.rollout.rewards import CompletionScore, RewardError, Rewards, identify_service, open_patient_client
from assay_training.runs.directory import RunDirectory
from tests import checkpoints
from tests.client.conftest import Wire
from tests.service.test_serve_process import ASSAY, free_port
from tests.training import tiny

CPU = torch.device("cpu")
EOS = checkpoints.decoder_tokenizer().eos_token_id
LORA = Lora(r=4, alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
FP32 = Adam(learning_rate=1e-3, compute_dtype="float32", max_grad_norm=None)
PPO = Ppo()
SERVICE = """
signals:
  pref: {base: base, adapter: pref}
  abs: {base: base, adapter: abs}
blends:
  mix: {weights: {pref: 0.25, abs: 0.75}}
default: mix
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, prompts, and two reward models with their service's configuration."""
    root, fast = tmp_path_factory.mktemp("ppo"), checkpoints.decoder_tokenizer()
    policy = checkpoints.language_model("llama", fast, seed=5, initializer_range=0.3)
    checkpoints.save(root / "policy", policy, fast)
    base = checkpoints.classifier("llama", fast)
    checkpoints.save(root / "base", base, fast)
    claims: dict[str, Any] = {"score_position": "last_token", "eos": "template", "unfinished": "score"}
    for seed, (name, kind) in enumerate((("pref", "preference"), ("abs", "absolute")), start=1):
        checkpoints.save_adapter(root / name, copy.deepcopy(base), seed=seed, kind=kind, max_length=128, **claims)
    (root / "service.yaml").write_text(SERVICE)
    tiny.write_rows(root / "data" / "asked" / "p.jsonl.gz", [{"prompt": f"How do I bake {i}?"} for i in range(12)])
    return root


@contextmanager
def serving(home: Path, port: int) -> Iterator[str]:
    """The service on loopback, in a thread of this process."""
    app = create_app(settings.read_settings(home / "service.yaml"))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    with RewardClient(f"http://127.0.0.1:{port}") as client:
        while not client.ready():
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """Of a service for all tests."""
    with serving(home, free_port()) as url:
        yield url


def common(home: Path, directory: Path) -> dict[str, Any]:
    """What every run on this policy has, with its template in place."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "template.jinja").write_text(checkpoints.CHATML)
    return {
        "name": "tiny",
        "base": str(home / "policy"),
        "template": "template.jinja",
        "sources": [{"name": "asked", "format": "prompts"}],
        "lora": LORA.model_dump(),
        "reward": {"model": "mix", "failed": "drop", "missing_eos_penalty": 0.0},
        "rollout": {"engine": "transformers", "max_prompt_tokens": 64},
        "seed": 1,
    }


def config_of(home: Path, path: Path, **changes: Any) -> Path:
    config = common(home, path.parent) | {
        "kl": {"coef": 0.02, "target": 6},
        "ppo": {"epochs": 2, "mini_batch": 4},
        "optimizer": FP32.model_dump() | {"checkpoint_steps": 1},
        "steps": 3,
    }
    config["rollout"] |= {"completions": 8, "chunk_completions": 4, "max_new_tokens": 8}
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(config))
    return path


def go(home: Path, url: str, out: Path, **changes: Any) -> list[dict[str, Any]]:
    """A whole run; its rows."""
    config = read(config_of(home, out.parent / f"{out.name}.yaml", **changes), PpoConfig)
    with open_patient_client(url, config.reward) as client:
        PpoRun(config, home / "data", out, client).go()
    return rows(out)


def rows(out: Path) -> list[dict[str, Any]]:
    """Whole ones: the last may be half written."""
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


TIMES = ("rollout_s", "score_s", "score_wait_s", "update_s")


def untimed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def examples(count: int = 6) -> list[SftExample]:
    generator = torch.Generator().manual_seed(0)
    lengths = [(5 + i % 3, 3 + 2 * (i % 4)) for i in range(count)]
    ids = [tuple(torch.randint(10, 300, (p + c,), generator=generator).tolist()) for p, c in lengths]
    return [SftExample.of(tokens[:p], tokens[p:]) for tokens, (p, _) in zip(ids, lengths, strict=True)]


def experience(example: SftExample, look: Any, advantage: float) -> Experience:
    advantages = torch.full((example.targets,), advantage)
    return Experience(
        example, look.logprobs, look.values, advantages, look.values + advantages, torch.ones_like(advantages)
    )


def test_before_the_first_update_policy_reference_and_old_policy_are_one(home: Path) -> None:
    """KL to the reference is 0 exactly; at equal micro-batches the ratio is 1 exactly, at others within 1e-6."""
    actor = Actor(home / "policy", LORA, CPU, 1.0)
    given = examples()
    outputs = actor.compute_old_outputs(given, FP32)
    for look, reference in zip(outputs, actor.compute_reference_logprobs(given, FP32), strict=True):
        assert torch.equal(look.logprobs, reference)
        assert not look.values.any()
    objective = ClippedObjective(actor, PPO, FP32)
    made = [experience(one, look, 1.0) for one, look in zip(given, outputs, strict=True)]
    tokens = objective.begin(made, [], lambda values: values)
    loss = objective.loss(made, tokens)
    tally = dict(zip(TALLY_NAMES, (objective.tally / tokens).tolist(), strict=True))
    assert (tally["ratio"], tally["clip_fraction"], tally["approx_kl"]) == (1, 0, 0)
    assert float(loss.detach()) == pytest.approx(-1 + 0.1 * 0.5)
    for i, one in enumerate(made):
        alone = actor.forward([given[i]], FP32)
        assert torch.allclose(torch.exp(alone.logprobs - one.logprobs), torch.ones(1), rtol=0, atol=1e-6)


def test_logits_are_computed_in_fp32_where_the_trunk_is_in_bf16(home: Path) -> None:
    """An engine in fp32 is half as far from them."""
    actor, given = Actor(home / "policy", LORA, CPU, 1.0), examples()
    settings = FP32.model_copy(update={"compute_dtype": "bfloat16"})
    with torch.no_grad(), autocast(CPU, settings):
        hidden, targets = actor.policy.compute_target_states(given)
    logprobs = (hidden.float() @ actor.policy.head.get_parameter("weight").T).log_softmax(-1)
    expected = logprobs.gather(1, targets[:, None])[:, 0].detach()
    assert torch.allclose(
        torch.cat([outputs.logprobs for outputs in actor.compute_old_outputs(given, settings)]), expected, atol=1e-5
    )


def test_a_mini_batch_in_one_forward_or_in_many_has_the_same_gradient(home: Path) -> None:
    """Accumulation N×1 = 1×N, for policy and values."""
    found = []
    for limit in (10_000, 1):
        torch.manual_seed(0)
        actor = Actor(home / "policy", LORA, CPU, 0.7)
        outputs = actor.compute_old_outputs(examples(), FP32)
        made = [
            experience(one, look, (-1.0) ** i) for i, (one, look) in enumerate(zip(examples(), outputs, strict=True))
        ]
        settings = FP32.model_copy(update={"micro_batch_tokens": limit})
        accumulate(ClippedObjective(actor, PPO, settings), made, actor.parameters(), settings, get_accelerator())
        found.append(torch.cat([p.grad.flatten() for p in actor.parameters() if p.grad is not None]))
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-6)
    assert found[0].abs().max() > 1e-3


def adapter_of(home: Path, directory: Path, scale: float) -> Path:
    """Of the policy, with weights that change what it says."""
    torch.manual_seed(3)
    actor = Actor(home / "policy", LORA, CPU, 1.0)
    with torch.no_grad():
        for parameter in actor.policy.parameters():
            parameter.normal_(std=scale)
    actor.policy.save_adapter(directory)
    return directory


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_an_engine_samples_from_the_adapter_that_was_pushed(home: Path, tmp_path: Path, temperature: float) -> None:
    """Its log-probabilities are the trainer's, also of prompts that were filled up, and after another push."""
    engine = TransformersEngine(home / "policy", Sampling(12, temperature, EOS), CPU)
    prompts: list[Ids] = [(20, 21, 22, 23, 24, 25), (30, 31), (40, 41, 42, 43)]
    seen = []
    for scale in (0.05, 0.3):
        adapter = adapter_of(home, tmp_path / str(scale), scale)
        engine.push(adapter)
        completions = engine.generate(prompts, seed=7)
        assert completions == engine.generate(prompts, seed=7)
        actor = Actor(home / "policy", LORA, CPU, temperature)
        actor.policy.load_adapter(adapter)
        given = [SftExample.of(c.prompt, c.ids) for c in completions]
        for completion, look in zip(completions, actor.compute_old_outputs(given, FP32), strict=True):
            assert look.logprobs.tolist() == pytest.approx(completion.logprobs, abs=1e-4)
        seen.append([completion.ids for completion in completions])
    assert seen[0] != seen[1]


def test_a_completion_ends_with_its_first_eos(home: Path, tmp_path: Path) -> None:
    """A policy that ends at once, and one that never does."""
    fast = checkpoints.decoder_tokenizer()
    for name, bias, expected in (("at once", 100.0, ("stop", 1)), ("never", -100.0, ("length", 6))):
        model = checkpoints.language_model("llama", fast, seed=5, tie_word_embeddings=False)
        with torch.no_grad():
            for layer in model.model.layers:  # what goes in comes out
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.fill_(1.0)
            model.lm_head.weight.zero_()
            model.lm_head.weight[fast.eos_token_id] = bias
        base = checkpoints.save(tmp_path / name, model, fast)
        engine = TransformersEngine(base, Sampling(6, 1.0, EOS), CPU)
        (completion,) = engine.generate([(20, 21)], seed=1)
        assert (completion.finish_reason, len(completion.ids)) == expected


def test_a_run_learns_over_http_and_reports_every_metric(home: Path, url: str, tmp_path: Path) -> None:
    found = go(home, url, tmp_path / "run")
    assert [row["step"] for row in found] == [0, 1, 2]
    first = found[0]
    assert (first["kl"], first["kl_k3"], first["explained_variance"]) == (0, 0, 0)
    assert first["logprob_mismatch"] < 1e-4
    limit = 10 * first["logprob_mismatch"] + 1e-4
    assert [row["logprob_mismatch_limit"] for row in found] == pytest.approx([0.1, limit, limit], rel=1e-6)
    assert not {"importance_ess", "importance_capped"} & first.keys()  # rollouts count as they are
    assert first["kl_coef"] == 0.02
    assert found[1]["kl_coef"] < 0.02  # far below the target
    assert found[2]["kl"] != 0
    assert len({row["fingerprint"] for row in found}) == 1
    with RewardClient(url) as client:
        assert found[0]["fingerprint"] == client.score([("a", "b")], model="mix").fingerprint
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")
    before = AutoModelForCausalLM.from_pretrained(home / "policy")
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), before.parameters(), strict=True))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "state").exists()


def test_a_run_over_a_service_in_its_own_process_is_the_same(home: Path, url: str, tmp_path: Path) -> None:
    served = go(home, url, tmp_path / "served")
    config = read(tmp_path / "served.yaml", PpoConfig)
    app = create_app(settings.read_settings(home / "service.yaml"))
    with RewardClient("http://assay", transport=AppTransport(app)) as client:
        PpoRun(config, home / "data", tmp_path / "run", client).go()
    assert untimed(rows(tmp_path / "run")) == untimed(served)
    assert not app.state.scorer.engine.alive


def test_a_metric_that_a_rollout_does_not_define_is_absent(home: Path, url: str, tmp_path: Path) -> None:
    """Lengths that are all alike have no correlation with anything; 0 would say that there is none. Nor are there
    weights without a cap for them."""
    (found,) = go(home, url, tmp_path / "run", steps=1, rollout={"max_new_tokens": 1})
    assert found["length"] == 1
    assert not {"score_length_correlation", "importance_ess", "importance_capped"} & set(found)


def test_an_importance_cap_gives_weights_and_their_metrics(home: Path, url: str, tmp_path: Path) -> None:
    """An engine that samples from what is trained has weights of 1, and none of them at a cap of 2."""
    (found,) = go(home, url, tmp_path / "run", steps=1, rollout={"importance_cap": 2.0})
    assert found["importance_ess"] == pytest.approx(1)
    assert found["importance_capped"] == 0


class Killed(Exception):
    """What ends a run in a test."""


def test_a_run_waits_for_a_service_that_is_started_again(home: Path, tmp_path: Path) -> None:
    """Longer than a client does by itself, which gives up after eight seconds."""
    port, config = free_port(), read(config_of(home, tmp_path / "c.yaml", steps=1), PpoConfig)
    with serving(home, port) as url:
        client = open_patient_client(url, config.reward)
    with client, ThreadPoolExecutor(1) as pool:
        run = PpoRun(config, home / "data", tmp_path / "run", client)
        going = pool.submit(run.go)
        time.sleep(12)
        assert not going.done()
        with serving(home, port):
            assert going.result(60) == tmp_path / "run" / "checkpoint"


def test_a_run_prints_the_models_that_score(
    home: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = go(home, url, tmp_path / "run", steps=1)
    printed = capsys.readouterr().err
    assert f"rewards: mix = 0.25 pref + 0.75 abs; fingerprint {found['fingerprint']}" in printed
    assert re.search(r"  pref: preference, model base, revision [0-9a-f]{16}, adapter [0-9a-f]{16}\n", printed)


def test_a_service_that_is_not_the_expected_one_stops_the_run_before_its_first_step(
    home: Path, url: str, tmp_path: Path
) -> None:
    with RewardClient(url) as client:
        lines = identify_service(client, Reward(model="mix"))
        fingerprint = lines[0].rpartition(" ")[2]
        right = {"fingerprint": fingerprint[:12], "signals": {"pref": {"kind": "preference", "model": "base"}}}
        assert identify_service(client, Reward.model_validate({"model": "mix", "expect": right})) == lines
        mine = Reward.model_validate(
            {"weights": {"pref": 1.0}, "expect": {"signals": {"pref": {"kind": "preference"}}}}
        )
        assert identify_service(client, mine)[0].startswith("rewards: weights of the run = 1 pref; fingerprint ")
        for expect, message in (
            ({"fingerprint": "0" * 64}, f"fingerprint is {fingerprint[:16]}, not 000"),
            ({"signals": {"pref": {"kind": "absolute"}}}, "pref: kind is preference, not absolute"),
            ({"signals": {"pref": {"model": "package:x"}}}, "pref: model is base, not package:x"),
            ({"signals": {"abs": {"adapter_sha256": "01234567"}}}, "abs: adapter_sha256 is [0-9a-f]{16}, not 01234567"),
            ({"signals": {"other": {}}}, "other is not a signal of this reward, which has abs, pref|pref, abs"),
        ):
            with pytest.raises(ConfigError, match=message):
                identify_service(client, Reward.model_validate({"model": "mix", "expect": expect}))
    config = config_of(home, tmp_path / "c.yaml")
    given = yaml.safe_load(config.read_text())
    given["reward"]["expect"] = {"signals": {"pref": {"model": "package:x"}}}
    config.write_text(yaml.safe_dump(given))
    options = ["--config", config, "--data", home / "data", "--url", url, "--out", tmp_path / "run"]
    command = [str(ASSAY), "train", "ppo", *map(str, options)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "reward: the service is not the one that the run expects: pref: model is base, not package:x" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_configuration_names_the_differences(home: Path, url: str, tmp_path: Path) -> None:
    go(home, url, tmp_path / "run", steps=1)
    message = r"choose another --out \(config.kl.coef was 0.02 and is 0.5; config.steps was 1 and is 2\)"
    with pytest.raises(ValueError, match=message):
        go(home, url, tmp_path / "run", steps=2, kl={"coef": 0.5})


def test_a_run_stopped_by_a_completion_resumes_and_drops_it(home: Path, url: str, tmp_path: Path) -> None:
    """Sampling is seeded, so that the same completion would stop it for ever."""
    with pytest.raises(RewardError, match=r"holds the control token .* \(set reward.failed: drop"):
        go(home, url, tmp_path / "run", steps=3, reward={"failed": "stop"})
    found = go(home, url, tmp_path / "run", steps=3, reward={"failed": "drop"})
    assert (len(found), sum(row["dropped"] for row in found) > 0) == (3, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masked_sums_are_computed_on_the_device_of_the_advantages() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    assert compute_masked_sums(values, values > 1).tolist() == [2, 5, 13]


def test_files_of_a_run_are_readable_by_other_users(home: Path, url: str, tmp_path: Path) -> None:
    """The service that serves a policy may be another user's."""
    go(home, url, tmp_path / "run", steps=1)
    weights = list((tmp_path / "run").rglob("*.safetensors"))
    assert len(weights) == 2
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in weights)
    assert not (tmp_path / "run" / "adapter" / "README.md").exists()


def test_a_killed_run_goes_on_bit_for_bit(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(home, url, tmp_path / "whole", steps=4)
    generate = TransformersEngine.generate

    def killing(self: TransformersEngine, prompts: Sequence[Ids], seed: int) -> list[Completion]:
        calls.append(seed)
        if len(calls) == 6:  # in the middle of the third step: each has two chunks
            raise Killed
        return generate(self, prompts, seed)

    calls: list[int] = []
    monkeypatch.setattr(TransformersEngine, "generate", killing)
    with pytest.raises(Killed):
        go(home, url, tmp_path / "killed", steps=4)
    assert len(rows(tmp_path / "killed")) == 2
    resumed = go(home, url, tmp_path / "killed", steps=4)
    assert untimed(resumed) == untimed(whole)
    states = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "checkpoint").state_dict()
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_a_run_that_is_killed_without_warning_goes_on_bit_for_bit(home: Path, url: str, tmp_path: Path) -> None:
    """SIGKILL wherever the process happens to be, three times; then the same rows and weights as without."""
    outs = [tmp_path / "whole", tmp_path / "killed"]
    config = config_of(home, tmp_path / "c.yaml", steps=8)
    options = ["--config", config, "--data", home / "data", "--url", url, "--out"]
    command = [*map(str, [ASSAY, "train", "ppo", *options])]
    subprocess.run([*command, outs[0]], check=True, capture_output=True)
    for steps in (1, 3, 6):
        process = subprocess.Popen([*command, outs[1]], stderr=subprocess.DEVNULL)
        while not (outs[1] / "metrics.jsonl").is_file() or len(rows(outs[1])) < steps:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run([*command, outs[1]], check=True, capture_output=True)
    assert untimed(rows(outs[1])) == untimed(rows(outs[0]))
    weights = [(out / "checkpoint" / "model.safetensors").read_bytes() for out in outs]
    assert weights[0] == weights[1]


def test_the_optimized_score_rises(home: Path, url: str, tmp_path: Path) -> None:
    found = go(
        home, url, tmp_path / "run", steps=20, kl={"coef": 0.0, "target": None},
        rollout={"completions": 128, "chunk_completions": 128, "max_new_tokens": 2},
        ppo={"epochs": 4, "mini_batch": 64}, optimizer={"learning_rate": 3e-3},
    )  # fmt: skip
    assert found[-1]["score"] > found[0]["score"] + 5 * found[0]["score_std"] / 128**0.5


def test_an_engine_that_lags_behind_stops_the_run(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one step from the second on, at an ordinary learning rate; also where the run was killed in between."""
    push = TransformersEngine.push
    pushed: list[Path] = []

    def late(self: TransformersEngine, adapter: Path) -> None:
        pushed.append(shutil.copytree(adapter, tmp_path / f"late-{len(pushed)}"))
        push(self, pushed[max(len(pushed) - 2, 0)])

    changes: dict[str, Any] = {"optimizer": {"learning_rate": 3e-4}}
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "push", late)
        with pytest.raises(EngineError, match="rollout 1: the log-probabilities of engine and trainer differ"):
            go(home, url, tmp_path / "run", **changes)
    assert len(rows(tmp_path / "run")) == 1
    monkeypatch.setattr(TransformersEngine, "push", lambda self, _: push(self, pushed[0]))
    with pytest.raises(EngineError, match="rollout 1"):
        go(home, url, tmp_path / "run", **changes)


def test_an_engine_of_another_policy_stops_the_first_rollout(home: Path, url: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"rollout 0: .* the limit is 1e-09"):
        go(home, url, tmp_path / "run", rollout={"max_logprob_mismatch": 1e-9})


def test_a_trainer_in_bf16_has_a_floor_that_a_healthy_run_stays_near(home: Path, url: str, tmp_path: Path) -> None:
    """Also while the policy becomes surer of itself, and rounding larger with its logits."""
    found = go(
        home, url, tmp_path / "run", steps=10, kl={"coef": 0.0, "target": None},
        rollout={"completions": 64, "chunk_completions": 32, "max_new_tokens": 2}, ppo={"mini_batch": 32, "epochs": 4},
        optimizer={"learning_rate": 3e-3, "compute_dtype": "bfloat16", "checkpoint_steps": 10},
    )  # fmt: skip
    assert found[0]["kl"] == 0
    assert found[0]["logprob_mismatch"] > 1e-4  # more than an engine in fp32 differs by that is late
    assert all(row["logprob_mismatch"] < row["logprob_mismatch_limit"] / 2 for row in found)
    assert found[-1]["entropy"] < found[0]["entropy"]


def test_importance_weights_are_reported(home: Path, url: str, tmp_path: Path) -> None:
    found = go(
        home, url, tmp_path / "run", rollout={"importance_cap": 1.0}, optimizer={"compute_dtype": "bfloat16"}
    )  # fmt: skip
    for row in found:
        assert 0.9 < row["importance_ess"] < 1
        assert 0 < row["importance_capped"] < 1


def test_an_update_whose_ratio_overflows_is_skipped(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log-ratio of 90 overflows fp32, and so do its loss and gradients."""
    look, outputs = Actor.forward, []

    def far(self: Actor, given: Sequence[SftExample], settings: Adam) -> PolicyOutputs:
        found = look(self, given, settings)
        outputs.append(found)
        return PolicyOutputs(found.logprobs + 90 * (len(outputs) == 2), found.values)

    monkeypatch.setattr(Actor, "forward", far)
    (found,) = go(home, url, tmp_path / "run", steps=1)
    assert (found["skipped"], len(outputs)) == (1, 4)
    assert found["ratio"] == pytest.approx(1, abs=0.1)  # of the other updates
    monkeypatch.setattr(
        Actor, "forward", lambda *arguments: PolicyOutputs((seen := look(*arguments)).logprobs + 90, seen.values)
    )
    (found,) = go(home, url, tmp_path / "none", steps=1)
    assert (found["skipped"], "ratio" in found) == (4, False)


def test_a_gradient_that_is_not_finite_changes_nothing(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Actor.forward

    def broken(self: Actor, given: Sequence[SftExample], settings: Adam) -> PolicyOutputs:
        found = look(self, given, settings)
        root = (found.logprobs - found.logprobs.detach()).sqrt()  # 0, and its slope infinite
        return PolicyOutputs(found.logprobs + 0 * root, found.values)

    monkeypatch.setattr(Actor, "forward", broken)
    config = read(config_of(home, tmp_path / "c.yaml"), PpoConfig)
    with open_patient_client(url, config.reward) as client:
        run = PpoRun(config, home / "data", tmp_path / "run", client)
        before = [parameter.detach().clone() for parameter in run.actor.parameters()]
        with pytest.raises(FloatingPointError, match=r"step 0: grad_norm is nan: the training diverges"):
            run.go()
    assert all(torch.equal(*pair) for pair in zip(before, run.actor.parameters(), strict=True))


ONE_TOKEN = "{% for m in messages %}{{ m['content'] }}{% if m['role'] != 'user' %}<|im_end|>{% endif %}{% endfor %}"


def test_prompts_of_one_token_are_prompts(home: Path, url: str, tmp_path: Path) -> None:
    """They have no token that the policy could be compared on when it is read back."""
    given = config_of(home, tmp_path / "c.yaml", steps=1)
    (tmp_path / "template.jinja").write_text(ONE_TOKEN)
    tiny.write_rows(tmp_path / "data" / "asked" / "p.jsonl.gz", [{"prompt": letter} for letter in "abcdefgh"])
    config = read(given, PpoConfig)
    with open_patient_client(url, config.reward) as client:
        run = PpoRun(config, tmp_path / "data", tmp_path / "run", client)
        assert {len(asked.ids) for asked in run.session.prompts} == {1}
        assert (run.go() / "model.safetensors").is_file()


def test_a_run_killed_after_its_results_leaves_no_state_behind(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: RunDirectory) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "forget", killed)
        with pytest.raises(Killed):
            go(home, url, tmp_path / "run", steps=1)
    assert (tmp_path / "run" / "state").exists()
    go(home, url, tmp_path / "run", steps=1)
    assert not (tmp_path / "run" / "state").exists()


def answer(fingerprint: str = "f", failed: bool = False, **prob: float) -> dict[str, Any]:
    """The service's, to one item."""
    signal = {
        "logit": 2.0,
        **prob,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "truncated_tokens": 0,
        "dropped_tokens": 0,
        "control_tokens_as_text": 0,
    }
    error = {"code": "too_long", "message": "it is", "param": None, "retryable": False}
    row: dict[str, Any] = (
        {"index": 0, "error": error} if failed else {"index": 0, "score": 2.0, "signals": {"s": signal}}
    )
    provenance: dict[str, Any] = {"blend": None, "signals": {}, "fingerprint": fingerprint}
    return {"object": "list", "data": [row], "model": "s", "provenance": provenance}


def rewards(answers: list[dict[str, Any]], **reward: Any) -> Rewards:
    """Of a service that says this, call by call."""
    given = iter(answers)
    transport = httpx.MockTransport(lambda request: Wire.answer(request, json=next(given)))
    return Rewards(RewardClient("http://assay.test", transport=transport), Reward(model="s", **reward), None)


ITEM = [Item(prompt="q", completion="a")]


def test_a_service_that_has_changed_stops_the_run() -> None:
    subject = rewards([answer("f"), answer("f"), answer("g")])
    assert [subject.score(ITEM) for _ in range(2)] == [[CompletionScore(2.0, {"s": 2.0})]] * 2
    with pytest.raises(RewardError, match="the service's fingerprint is g now, and was f before"):
        subject.score(ITEM)


def test_a_completion_without_a_score_stops_the_run_or_is_dropped() -> None:
    with pytest.raises(RewardError, match="could not score a completion: too_long"):
        rewards([answer(failed=True)]).score(ITEM)
    assert rewards([answer(failed=True)], failed="drop").score(ITEM) == ["too_long"]


def test_a_bounded_reward_is_a_probability() -> None:
    assert rewards([answer(prob=0.75)], value="probability").score(ITEM) == [CompletionScore(0.75, {"s": 2.0})]
    with pytest.raises(RewardError, match="has no probability"):
        rewards([answer()], value="probability").score(ITEM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": {"weights": {"pref": 1.0}}}, "reward: set exactly one of model and weights"),
        ({"reward": {"model": "pref", "value": "probability"}}, "'pref' is not an absolute signal"),
        ({"reward": {"model": "mix", "value": "probability"}}, "'mix' is not an absolute signal"),
        ({"reward": {"model": "other"}}, "reward: 'other' is not served; the service has"),
        ({"reward": {"model": None, "weights": {"mix": 1.0}}}, "weights: 'mix' is a blend"),
        ({"reward": {"model": None, "weights": {}}}, "reward.weights: must have 1 or more entries, and has 0"),
        (
            {"reward": {"modell": "mix"}, "step": 3},
            r"^\S+: reward.modell: unknown key; .*\n  step: unknown key",
        ),
        ({"rollout": {"max_prompt_tokens": 5}}, r"0 prompts, 12 dropped \(too_long\); rollout.max_prompt_tokens is 5"),
        ({"rollout": {"temperature": 0.005}}, r"rollout.temperature: must be at least 0.01, because vLLM"),
        ({"lora": {"target_modules": ["q_proj", "lm_head"]}}, "lora.target_modules: 'lm_head' is the output layer"),
        (
            {"lora": {"target_modules": ["embed_tokens"]}},
            "lora.target_modules: the base has no linear layer 'embed_tokens'",
        ),
        ({"rollout": {"max_new_tokens": 1000}}, r"max_prompt_tokens \+ max_new_tokens: 1064 is more than the 256"),
        ({"ppo": {"mini_batch": 9}}, "ppo.mini_batch must be at most rollout.completions"),
        ({"sources": [{"name": "elsewhere", "format": "prompts"}]}, "elsewhere: no such folder"),
        ({"sources": [{"name": "asked", "format": "labels"}]}, "has no prompts; these have: hh"),
    ],
)
def test_a_wrong_configuration_is_refused(
    changes: dict[str, Any], message: str, home: Path, url: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        go(home, url, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
