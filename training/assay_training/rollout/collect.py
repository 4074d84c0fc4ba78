"""Prompts to completions with their scores: while some are generated, those before them are scored.

Several processes share the prompts, each with an engine of its own; afterwards all of them have all.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from assay_client.types import Item
from assay_client.types import Message as WireMessage
from assay_training.processes import accelerator, gathered, mine
from assay_training.rollout.asked import Asked
from assay_training.rollout.completion import Completion
from assay_training.rollout.engine import Engine
from assay_training.rollout.rewards import RewardError, Rewards, Worth

SHORT_S = 10  # rollouts that take less have no progress to show


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion that has a score.

    Attributes:
        asked: its prompt.
        completion: as it was sampled.
        text: as it was scored: without its EOS.
        worth: its score.
    """

    asked: Asked
    completion: Completion
    text: str
    worth: Worth


@dataclass(frozen=True, slots=True)
class Took:
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
        took: this process' time.
    """

    samples: list[Sample]
    dropped: Counter[str]
    took: Took

    @property
    def numbers(self) -> dict[str, float]:
        """What metrics tell of it: seconds, and how many completions have no score."""
        return {
            "rollout_s": self.took.generate_s,
            "score_s": self.took.score_s,
            "score_wait_s": self.took.wait_s,
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

    def collect(self, asked: Sequence[Asked], rewards: Rewards, seed: str) -> Rollout:
        """A completion of each prompt, from all processes.

        Args:
            asked: prompts.
            rewards: scores.
            seed: of everything that is sampled.

        Raises:
            RewardError: see `Rewards.score`; or there is nothing that could be scored.
            AssayError: the service could not be reached, or refused.
        """
        done, took = self._here(mine(asked), rewards, f"{seed}:{accelerator().process_index}")
        outcomes = gathered(done, len(asked))
        samples = [outcome for outcome in outcomes if isinstance(outcome, Sample)]
        dropped = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
        if not samples:
            raise RewardError(f"the service could score none of the completions: {dict(dropped)}")
        return Rollout(samples, dropped, took)

    def _here(self, asked: Sequence[Asked], rewards: Rewards, seed: str) -> tuple[list[Sample | str], Took]:
        """What this process gets: a sample, or an error's code, for each of its prompts."""
        outcomes: list[Sample | str] = []
        generate_s, score_s, started_s = 0.0, 0.0, time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            waiting = []
            starts, main = range(0, len(asked), self.chunk), accelerator().is_main_process
            for start in tqdm(starts, "chunks", leave=False, delay=SHORT_S, disable=not main):
                part = asked[start : start + self.chunk]
                before_s = time.monotonic()
                completions = self.engine.generate([one.ids for one in part], _seed(seed, start))
                generate_s += time.monotonic() - before_s
                texts = [self.text_of(completion) for completion in completions]
                items = [_item(*of) for of in zip(part, completions, texts, strict=True)]
                waiting.append((part, completions, texts, pool.submit(_timed, rewards, items)))
            for part, completions, texts, future in waiting:
                worths, took_s = future.result()
                score_s += took_s
                outcomes += [
                    worth if isinstance(worth, str) else Sample(one, completion, text, worth)
                    for one, completion, text, worth in zip(part, completions, texts, worths, strict=True)
                ]
        return outcomes, Took(generate_s, score_s, time.monotonic() - started_s - generate_s)


def _timed(rewards: Rewards, items: Sequence[Item]) -> tuple[list[Worth | str], float]:
    started_s = time.monotonic()
    return rewards.score(items), time.monotonic() - started_s


def _item(asked: Asked, completion: Completion, text: str) -> Item:
    messages = [WireMessage(message.role, message.content) for message in asked.prompt.messages]
    return Item(prompt=messages, completion=text, finish_reason=completion.finish_reason)


def _seed(seed: str, start: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{start}".encode()).digest()[:4]) >> 1
