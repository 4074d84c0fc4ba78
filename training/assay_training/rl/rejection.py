"""Run rejection sampling in rounds: sample, score, and train on the best completions ([Llama 2] section 3.2.3).

The best completions of earlier rounds are trained on again, so that a round does not unlearn what others taught.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from assay_client.client import RewardClient
from assay_training.algorithms.schedule import draw_cyclic_batch
from assay_training.config.base import read
from assay_training.config.rejection import RejectionConfig
from assay_training.config.rollout import Reward
from assay_training.data.sft_examples import SftExample
from assay_training.distributed.numbers import decide_compute_dtype
from assay_training.distributed.processes import get_accelerator, print_once
from assay_training.loop.next_token import NextToken
from assay_training.loop.supervised import Schedule, train
from assay_training.models.batches import cut_token_batches
from assay_training.models.policy import Policy
from assay_training.rl import summary
from assay_training.rl.experience import build_example, compute_correlation, shape_sample_scores
from assay_training.rl.session import RolloutSession, check_sampled_base
from assay_training.rollout.collect import Rollout, ScoredCompletion
from assay_training.rollout.completion import Ids
from assay_training.rollout.rewards import Rewards, identify_service, open_patient_client
from assay_training.runs.files import replace_whole


class RejectionRun:
    """A run of rejection sampling: one configuration with its prompts, a reward service and an engine.

    Args:
        config: configuration of the run.
        data: folder with a folder for each source.
        out: run directory.
        client: client of the reward service.

    Attributes:
        config: configuration of the run.
        policy: policy that is trained.
        session: prompts, engine and run directory.
        run: run directory.

    Raises:
        ValueError: the configuration, the prompts or the run directory is wrong.
    """

    def __init__(self, config: RejectionConfig, data: Path, out: Path, client: RewardClient) -> None:
        self.config, self._client = config, client
        base = check_sampled_base(config)
        torch.manual_seed(config.seed)  # the adapter is initialized at random
        self.policy = Policy(base, config.lora, get_accelerator().device)
        self.session = RolloutSession(config, base, self.policy, data, out)
        self.run = self.session.run

    def go(self) -> Path:
        """Run all rounds from where an interrupted run stopped, then save the whole policy and return its directory.

        Raises:
            ConfigError: the service is not the one that the run expects; nothing has been sampled then.
            RunStopped: a completion has no score, the service has changed, or the engine does not sample from the
                policy.
            FloatingPointError: the training diverges.
        """
        if self.run.read_json("results.json") is not None:
            self.run.forget()  # a run killed after writing its results still has its resume state
            return self.session.checkpoint
        for line in identify_service(self._client, self.config.reward):
            print_once(line)
        kept: list[SftExample] = []
        results: list[dict[str, Any]] = []
        fingerprint: str | None = None
        for number in range(1, self.config.rounds + 1):
            result = self.run.read_json(f"round-{number}.json") or self._sample(number, fingerprint)
            fingerprint, self.session.engine_check.floor = result["fingerprint"], result["mismatch_floor"]
            results.append({key: result[key] for key in ("round", "fingerprint", "score", "best_score", "dropped")})
            kept += [SftExample.of(tuple(best["prompt_ids"]), tuple(best["ids"])) for best in result["best"]]
            self._learn(number, kept)
        return self.session.finish(results)

    def _sample(self, number: int, fingerprint: str | None) -> dict[str, Any]:
        """Sample and score the completions of a round, and return its best ones with the scores of all.

        The result is also stored as `round-N.json`, so that a resumed run does not sample the round again.

        Args:
            number: number of the round, from 1; it selects the prompts.
            fingerprint: fingerprint of the models that scored the earlier rounds; None in the first.
        """
        config, rewards = self.config, Rewards(self._client, self.config.reward, fingerprint)
        prompts = self.session.prompts
        chosen = draw_cyclic_batch(len(prompts), config.prompts, number - 1, config.seed)
        rollout = self.session.roll_out(number, [prompts[i] for i in chosen for _ in range(config.samples)], rewards)
        # One chunk is enough to notice a wrong adapter, and costs the trainer few passes.
        mismatch = self._measure_mismatch(rollout.samples[: config.rollout.chunk_completions])
        checked = self.session.engine_check.check(number, mismatch)
        completions = group_by_prompt(rollout.samples)
        best = [select_best(samples, config.reward) for samples in completions]
        result = {
            "round": number,
            "fingerprint": rewards.fingerprint,
            "mismatch_floor": self.session.engine_check.floor,
            "score": _average_score(rollout.samples),
            "best_score": _average_score(best),
            "dropped": rollout.dropped,
            "best": [_build_record(sample) for sample in best],
            "scores": [[sample.score.value for sample in samples] for samples in completions],
        }
        if self.run.writes:
            metrics = compute_round_metrics(rollout, best)
            self._log(number, {**metrics, **checked, "fingerprint": rewards.fingerprint})
        self.run.write_json(f"round-{number}.json", result)
        # Returned as a resumed run would read it, so that both train on equal values.
        as_read: dict[str, Any] = json.loads(json.dumps(result))
        return as_read

    def _measure_mismatch(self, samples: Sequence[ScoredCompletion]) -> float:
        """Return the mean absolute difference of the engine's and the policy's log-probabilities, in nats per token.

        The policy computes in fp32, where rounding hides the least.
        """
        settings, examples, logprobs = self.config, [build_example(sample) for sample in samples], []
        for part in cut_token_batches(range(len(examples)), examples, settings.optimizer.micro_batch_tokens):
            with torch.no_grad():
                logprobs.append(self.policy.logprobs([examples[i] for i in part], settings.rollout.temperature).cpu())
        engine = torch.tensor([logprob for sample in samples for logprob in sample.completion.logprobs])
        return float((torch.cat(logprobs) - engine).abs().mean())

    def _log(self, number: int, row: Mapping[str, Any]) -> None:
        """Write the round's row of metrics.

        It precedes the file of the round: a run killed between the two samples the round again and rewrites the row.
        """
        metrics = self.run.metrics("rounds")
        metrics.begin(number)
        metrics.log({"step": number, **row})
        metrics.end()

    def _learn(self, number: int, kept: Sequence[SftExample]) -> None:
        """Train the adapter on the best completions, from the state after the previous round.

        Args:
            number: number of the round; an adapter that is already saved is loaded instead.
            kept: best completions of this round and all earlier ones.
        """
        adapter = self.run.path / f"round-{number}"
        if (adapter / "adapter_config.json").is_file():
            self.policy.load_adapter(adapter)
            return
        schedule = Schedule(kept, self.config.optimizer, self.config.seed + number)
        train(
            NextToken(self.policy, self.config.optimizer),
            self.policy.parameters(),
            schedule,
            name=f"{self.config.name} round {number}",
            metrics=self.run.metrics(f"round-{number}"),
            resume=self.run.resume_point(f"round-{number}"),
        )
        # Renamed when complete: the directory marks the round as learned.
        if self.run.writes:
            replace_whole(adapter, self.policy.save_adapter)
        get_accelerator().wait_for_everyone()


def group_by_prompt(samples: Sequence[ScoredCompletion]) -> list[list[ScoredCompletion]]:
    """Return the completions of each prompt; prompts are equal if their token ids are."""
    groups: dict[Ids, list[ScoredCompletion]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt.ids, []).append(sample)
    return list(groups.values())


def select_best(samples: Sequence[ScoredCompletion], reward: Reward) -> ScoredCompletion:
    """Return the completion of one prompt with the highest shaped score, as in PPO; the first of equal ones."""
    shaped = shape_sample_scores(samples, reward)[-1].tolist()
    return samples[max(range(len(samples)), key=shaped.__getitem__)]


def compute_round_metrics(rollout: Rollout, best: Sequence[ScoredCompletion]) -> dict[str, float]:
    """Return the metrics of a round by name.

    The correlation of score and length is absent where one of them is constant.

    Args:
        rollout: all completions of the round.
        best: best completion of each prompt.
    """
    count = len(rollout.samples)
    scores = torch.tensor([sample.score.value for sample in rollout.samples])
    lengths = torch.tensor([float(len(sample.completion.ids)) for sample in rollout.samples])
    correlation = compute_correlation(scores, lengths)
    return {
        "score": _average_score(rollout.samples),
        "best_score": _average_score(best),
        "length": float(lengths.mean()),
        "eos_rate": sum(sample.completion.finish_reason == "stop" for sample in rollout.samples) / count,
        **({} if correlation is None else {"score_length_correlation": correlation}),
        **rollout.numbers,
    }


def _average_score(samples: Sequence[ScoredCompletion]) -> float:
    """Return the mean score, before clipping and penalty."""
    return sum(sample.score.value for sample in samples) / len(samples)


def _build_record(sample: ScoredCompletion) -> dict[str, Any]:
    """Build the JSON record of a completion, with its text for readers and its token ids for training."""
    messages = [message.as_dict() for message in sample.prompt.prompt.messages]
    return {
        "prompt": messages,
        "completion": sample.text,
        "finish_reason": sample.completion.finish_reason,
        "score": sample.score.value,
        "signals": sample.score.signals,
        "prompt_ids": sample.completion.prompt,
        "ids": sample.completion.ids,
    }


def run(config_path: Path, data: Path, out: Path | None, url: str, api_key: str | None = None) -> Path:
    """Run `assay train rejection` and return the directory of the checkpoint.

    Args:
        config_path: YAML file of the configuration.
        data: folder with a folder for each source.
        out: run directory; None means `runs/NAME`.
        url: address of the reward service.
        api_key: key that is sent to the service; None sends none.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong, or the service does not have the reward.
        AssayError: the service could not be reached, or refused a request.
        RunStopped: the service or the engine is not as it must be; the run can be resumed.
        FloatingPointError: the training diverges.
    """
    config = decide_compute_dtype(read(config_path, RejectionConfig))
    with open_patient_client(url, config.reward, api_key) as client:
        rejection = RejectionRun(config, data, out or Path("runs") / config.name, client)
        checkpoint = rejection.go()
    rounds = rejection.run.read_json("results.json") or []
    for line in summary.describe_rejection_run(rounds, config.samples, checkpoint):
        print_once(line)
    return checkpoint
