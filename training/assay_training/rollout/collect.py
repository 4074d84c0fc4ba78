"""Prompts to completions with their scores: while some are generated, those before them are scored.

Several processes share the prompts, each with an engine of its own; afterwards all of them have all.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from tqdm import tqdm

from assay_client.types import Item
from assay_client.types import Message as WireMessage
from assay_training.distributed.processes import accelerator, gathered, mine
from assay_training.rollout.completion import Completion
from assay_training.rollout.engines.base import Engine
from assay_training.rollout.prompts import TokenizedPrompt
from assay_training.rollout.rewards import CompletionScore, RewardError, Rewards

SHORT_S = 10  # rollouts that take less have no progress to show


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """A completion that has a score.

    Attributes:
        asked: its prompt.
        completion: as it was sampled.
        text: as it was scored: without its EOS.
        score: its score.
    """

    prompt: TokenizedPrompt
    completion: Completion
    text: str
    score: CompletionScore


@dataclass(frozen=True, slots=True)
class RolloutTimings:
    """Seconds of one process.

    Attributes:
        generate_s: in the engine.
        score_s: in the service's calls.
        wait_s: those of them in which nothing was generated.
    """

    generate_s: float
    score_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a step learns from.

    Attributes:
        samples: in the order of the prompts, without those that could not be scored.
        dropped: completions without a score, by the service's error code.
        timings: this process' time.
    """

    samples: list[ScoredCompletion]
    dropped: Counter[str]
    timings: RolloutTimings

    @property
    def numbers(self) -> dict[str, float]:
        """What metrics tell of it: seconds, and how many completions have no score."""
        return {
            "rollout_s": self.timings.generate_s,
            "score_s": self.timings.score_s,
            "score_wait_s": self.timings.wait_s,
            "dropped": float(self.dropped.total()),
        }


@dataclass(frozen=True, slots=True)
class Collector:
    """What it takes to get from prompts to scored completions, but for the scores.

    Attributes:
        engine: samples.
        text_of: a completion's text, for the service.
        chunk: completions that are generated together.
    """

    engine: Engine
    text_of: Callable[[Completion], str]
    chunk: int

    def collect(self, asked: Sequence[TokenizedPrompt], rewards: Rewards, seed: str) -> Rollout:
        """A completion of each prompt, from all processes.

        Args:
            asked: prompts.
            rewards: scores.
            seed: of everything that is sampled.

        Raises:
            RewardError: see `Rewards.score`; or nothing could be scored, or not by the same models in all processes.
            AssayError: the service could not be reached, or refused.
        """
        done, took = self._here(mine(asked), rewards, f"{seed}:{accelerator().process_index}")
        told = gathered([(outcome, rewards.fingerprint) for outcome in done], len(asked))
        outcomes = [outcome for outcome, _ in told]
        fingerprints = {fingerprint for _, fingerprint in told}
        if len(fingerprints) > 1:
            shown = ", ".join(sorted(str(fingerprint)[:12] for fingerprint in fingerprints))
            raise RewardError(
                f"processes had their scores from different models ({shown}): give all of them one service"
            )
        samples = [outcome for outcome in outcomes if isinstance(outcome, ScoredCompletion)]
        dropped = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
        if not samples:
            raise RewardError(f"the service could score none of the completions: {dict(dropped)}")
        (rewards.fingerprint,) = fingerprints  # a process that had no prompts has none of its own
        return Rollout(samples, dropped, took)

    def _here(
        self, asked: Sequence[TokenizedPrompt], rewards: Rewards, seed: str
    ) -> tuple[list[ScoredCompletion | str], RolloutTimings]:
        """What this process gets: a sample, or an error's code, for each of its prompts."""
        sampled: list[tuple[TokenizedPrompt, Completion, str]] = []
        generate_s, started_s = 0.0, time.monotonic()
        starts, main = range(0, len(asked), self.chunk), accelerator().is_main_process
        with _Scoring(rewards) as scoring:
            for start in tqdm(starts, "chunks", leave=False, delay=SHORT_S, disable=not main):
                scoring.check()
                part = asked[start : start + self.chunk]
                before_s = time.monotonic()
                completions = self.engine.generate([one.ids for one in part], _seed(seed, start))
                generate_s += time.monotonic() - before_s
                texts = [self.text_of(completion) for completion in completions]
                of = list(zip(part, completions, texts, strict=True))
                scoring.begin([_item(*one) for one in of])
                sampled += of
            worths, score_s = scoring.finish()
        outcomes = [
            worth if isinstance(worth, str) else ScoredCompletion(*of, worth)
            for of, worth in zip(sampled, worths, strict=True)
        ]
        return outcomes, RolloutTimings(generate_s, score_s, time.monotonic() - started_s - generate_s)


class _Scoring:
    """Scores in a thread of its own, call after call; once one has failed no other is made."""

    def __init__(self, rewards: Rewards) -> None:
        self._rewards, self._thread = rewards, ThreadPoolExecutor(1, "assay-scoring")
        self._calls: list[Future[tuple[list[CompletionScore | str], float]]] = []

    def begin(self, items: Sequence[Item]) -> None:
        """Scores these after those before them."""
        self._calls.append(self._thread.submit(self._timed, items))

    def check(self) -> None:
        """Raises what a call has failed with."""
        for call in self._calls:
            if call.done():
                call.result()

    def finish(self) -> tuple[list[CompletionScore | str], float]:
        """All scores, in order, and the seconds that the calls took; raises what one has failed with."""
        done = [call.result() for call in self._calls]
        return [worth for worths, _ in done for worth in worths], sum(took_s for _, took_s in done)

    def _timed(self, items: Sequence[Item]) -> tuple[list[CompletionScore | str], float]:
        self.check()
        started_s = time.monotonic()
        return self._rewards.score(items), time.monotonic() - started_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Does not wait: the call in flight may be one that waits for a service, and ends with its client.
        self._thread.shutdown(wait=False, cancel_futures=True)


def _item(asked: TokenizedPrompt, completion: Completion, text: str) -> Item:
    messages = [WireMessage(message.role, message.content) for message in asked.prompt.messages]
    return Item(prompt=messages, completion=text, finish_reason=completion.finish_reason)


def _seed(seed: str, start: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{start}".encode()).digest()[:4]) >> 1
