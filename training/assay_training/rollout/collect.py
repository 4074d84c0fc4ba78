"""Prompts to completions with their scores: while some are generated, those before them are scored.

Several processes share the prompts, each with an engine of its own; afterwards all of them have all.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from assay_client.types import Item
from assay_client.types import Message as WireMessage
from assay_training.processes import accelerator, gathered, mine
from assay_training.rollout.asked import Asked
from assay_training.rollout.completion import Completion
from assay_training.rollout.engine import Engine
from assay_training.rollout.rewards import RewardError, Rewards, Worth


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
class Rollout:
    """What a step learns from.

    Attributes:
        samples: in the order of the prompts, without those that could not be scored.
        dropped: completions without a score, by the service's error code.
        generate_s: seconds in the engine.
        score_s: seconds in the service's calls.
        wait_s: those of them in which nothing was generated.
    """

    samples: list[Sample]
    dropped: Counter[str]
    generate_s: float
    score_s: float
    wait_s: float


def collect(
    asked: Sequence[Asked],
    engine: Engine,
    rewards: Rewards,
    text_of: Callable[[Completion], str],
    chunk: int,
    seed: str,
) -> Rollout:
    """A completion of each prompt, from all processes.

    Args:
        asked: prompts.
        engine: samples.
        rewards: scores.
        text_of: a completion's text, for the service.
        chunk: completions that are generated together.
        seed: of everything that is sampled.

    Raises:
        RewardError: see `Rewards.score`; or there is nothing that could be scored.
        AssayError: the service could not be reached, or refused.
    """
    part = _collect(mine(asked), engine, rewards, text_of, chunk, f"{seed}:{accelerator().process_index}")
    outcomes = gathered(part.outcomes, len(asked))
    samples = [outcome for outcome in outcomes if isinstance(outcome, Sample)]
    dropped = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
    if not samples:
        raise RewardError(f"the service could score none of the completions: {dict(dropped)}")
    return Rollout(samples, dropped, part.generate_s, part.score_s, part.wait_s)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one process has done: a sample or an error's code for each of its prompts; seconds."""

    outcomes: list[Sample | str]
    generate_s: float
    score_s: float
    wait_s: float


def _collect(
    asked: Sequence[Asked],
    engine: Engine,
    rewards: Rewards,
    text_of: Callable[[Completion], str],
    chunk: int,
    seed: str,
) -> _Part:
    outcomes: list[Sample | str] = []
    generated, started_s = 0.0, time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waiting = []
        for start in range(0, len(asked), chunk):
            part = asked[start : start + chunk]
            before_s = time.monotonic()
            completions = engine.generate([one.ids for one in part], _seed(seed, start))
            generated += time.monotonic() - before_s
            texts = [text_of(completion) for completion in completions]
            items = [_item(*of) for of in zip(part, completions, texts, strict=True)]
            waiting.append((part, completions, texts, pool.submit(_timed, rewards, items)))
        scored = 0.0
        for part, completions, texts, future in waiting:
            worths, took_s = future.result()
            scored += took_s
            rows = zip(part, completions, texts, worths, strict=True)
            outcomes += [of[-1] if isinstance(of[-1], str) else Sample(*of[:-1], of[-1]) for of in rows]
    return _Part(outcomes, generated, scored, time.monotonic() - started_s - generated)


def _timed(rewards: Rewards, items: Sequence[Item]) -> tuple[list[Worth | str], float]:
    started_s = time.monotonic()
    return rewards.score(items), time.monotonic() - started_s


def _item(asked: Asked, completion: Completion, text: str) -> Item:
    messages = [WireMessage(message.role, message.content) for message in asked.prompt.messages]
    return Item(prompt=messages, completion=text, finish_reason=completion.finish_reason)


def _seed(seed: str, start: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{start}".encode()).digest()[:4]) >> 1
