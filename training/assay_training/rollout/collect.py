"""Generate completions of prompts and score them at the same time: one chunk is generated while the last is scored.

Several processes share the prompts, each with an engine of its own. Afterwards every process has all completions.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from tqdm import tqdm

from assay_client.messages import Message as WireMessage
from assay_client.types import Item
from assay_training.distributed.processes import gather_results, get_accelerator, select_own
from assay_training.rollout.completion import Completion
from assay_training.rollout.engines.base import Engine
from assay_training.rollout.prompts import TokenizedPrompt
from assay_training.rollout.rewards import CompletionScore, RewardError, Rewards

SHORT_S = 10  # a rollout that takes less shows no progress bar


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """A sampled completion with its score.

    Attributes:
        prompt: prompt of the completion.
        completion: sampled token ids and their log-probabilities.
        text: text that was scored, without the final EOS.
        score: score of the service.
    """

    prompt: TokenizedPrompt
    completion: Completion
    text: str
    score: CompletionScore


@dataclass(frozen=True, slots=True)
class RolloutTimings:
    """The seconds that one process spent on a rollout.

    Attributes:
        generate_s: seconds in the engine.
        score_s: seconds in calls of the service.
        wait_s: seconds in which nothing was generated, because scores were still missing.
    """

    generate_s: float
    score_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """The scored completions of one step or round, from all processes.

    Attributes:
        samples: scored completions in the order of their prompts, without the dropped ones.
        dropped: number of completions without a score, by the service's error code.
        timings: seconds of this process.
    """

    samples: list[ScoredCompletion]
    dropped: Counter[str]
    timings: RolloutTimings

    @property
    def numbers(self) -> dict[str, float]:
        """Return the metrics of the rollout: seconds, and the number of dropped completions."""
        return {
            "rollout_s": self.timings.generate_s,
            "score_s": self.timings.score_s,
            "score_wait_s": self.timings.wait_s,
            "dropped": float(self.dropped.total()),
        }


@dataclass(frozen=True, slots=True)
class Collector:
    """A generator of scored completions.

    Attributes:
        engine: engine that samples.
        text_of: function that returns a completion's text, for the service.
        chunk: number of completions that are generated together, and then scored while the next are generated.
    """

    engine: Engine
    text_of: Callable[[Completion], str]
    chunk: int

    def collect(self, prompts: Sequence[TokenizedPrompt], rewards: Rewards, seed: str) -> Rollout:
        """Generate and score one completion of each prompt, over all processes.

        Args:
            prompts: prompts to complete, the same in every process.
            rewards: source of the scores.
            seed: seed of the sampling; each process and chunk derives its own from it.

        Raises:
            RewardError: a completion has no score and the run stops then (see `Rewards.score`); no completion has a
                score; or processes got scores from different models.
            AssayError: the service could not be reached, or refused a request.
        """
        own, timings = self._collect_own(select_own(prompts), rewards, f"{seed}:{get_accelerator().process_index}")
        gathered = gather_results([(outcome, rewards.fingerprint) for outcome in own], len(prompts))
        outcomes = [outcome for outcome, _ in gathered]
        fingerprints = {fingerprint for _, fingerprint in gathered}
        if len(fingerprints) > 1:
            shown = ", ".join(sorted(str(fingerprint)[:12] for fingerprint in fingerprints))
            raise RewardError(
                f"the processes got scores from different models (fingerprints {shown}): point all of them to one "
                "service"
            )
        samples = [outcome for outcome in outcomes if isinstance(outcome, ScoredCompletion)]
        dropped = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
        if not samples:
            raise RewardError(f"the service could score none of the completions (by error code: {dict(dropped)})")
        # Set here, because a process without prompts has not seen the fingerprint itself.
        (rewards.fingerprint,) = fingerprints
        return Rollout(samples, dropped, timings)

    def _collect_own(
        self, prompts: Sequence[TokenizedPrompt], rewards: Rewards, seed: str
    ) -> tuple[list[ScoredCompletion | str], RolloutTimings]:
        """Return a scored completion, or the code of an error, for each prompt of this process."""
        sampled: list[tuple[TokenizedPrompt, Completion, str]] = []
        generate_s, started_s = 0.0, time.monotonic()
        starts, main = range(0, len(prompts), self.chunk), get_accelerator().is_main_process
        # The engine and the service compute at the same time, each on its own device or process.
        with _ScoringThread(rewards) as scoring:
            for start in tqdm(starts, "chunks", leave=False, delay=SHORT_S, disable=not main):
                scoring.check()  # do not generate for minutes after a call has failed
                part = prompts[start : start + self.chunk]
                before_s = time.monotonic()
                completions = self.engine.generate([prompt.ids for prompt in part], _derive_seed(seed, start))
                generate_s += time.monotonic() - before_s
                texts = [self.text_of(completion) for completion in completions]
                chunk = list(zip(part, completions, texts, strict=True))
                scoring.begin([_build_item(*row) for row in chunk])
                sampled += chunk
            scores, score_s = scoring.finish()
        outcomes = [
            score if isinstance(score, str) else ScoredCompletion(*row, score)
            for row, score in zip(sampled, scores, strict=True)
        ]
        return outcomes, RolloutTimings(generate_s, score_s, time.monotonic() - started_s - generate_s)


class _ScoringThread:
    """A thread that scores one batch of items after the other, and stops at the first call that fails."""

    def __init__(self, rewards: Rewards) -> None:
        # One thread: calls keep their order, and no two of them use `Rewards` at once.
        self._rewards, self._thread = rewards, ThreadPoolExecutor(1, "assay-scoring")
        self._calls: list[Future[tuple[list[CompletionScore | str], float]]] = []

    def begin(self, items: Sequence[Item]) -> None:
        """Queue items to be scored after those before them."""
        self._calls.append(self._thread.submit(self._score_timed, items))

    def check(self) -> None:
        """Raise the error of a call that has failed, if there is one."""
        for call in self._calls:
            if call.done():
                call.result()

    def finish(self) -> tuple[list[CompletionScore | str], float]:
        """Wait for all calls, and return all scores in order and the seconds that the calls took.

        It raises the error of a call that has failed.
        """
        results = [call.result() for call in self._calls]
        return [score for scores, _ in results for score in scores], sum(took_s for _, took_s in results)

    def _score_timed(self, items: Sequence[Item]) -> tuple[list[CompletionScore | str], float]:
        """Return the scores of items and the seconds of the call, in the scoring thread."""
        self.check()
        started_s = time.monotonic()
        return self._rewards.score(items), time.monotonic() - started_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Without waiting: a call in flight may wait minutes for a restarting service, and ends when its client closes.
        self._thread.shutdown(wait=False, cancel_futures=True)


def _build_item(prompt: TokenizedPrompt, completion: Completion, text: str) -> Item:
    """Build the item that the service scores; it renders the messages with its own template."""
    messages = [WireMessage(message.role, message.content) for message in prompt.prompt.messages]
    return Item(prompt=messages, completion=text, finish_reason=completion.finish_reason)


def _derive_seed(seed: str, start: int) -> int:
    """Return the seed of a chunk: 31 bits of a hash, so that no two chunks or processes sample alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{start}".encode()).digest()[:4]) >> 1
