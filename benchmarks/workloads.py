"""Make the workloads: invented conversations with the lengths of HH dialogues, fresh for every round.

Words of a prompt and of a completion are log-normal with the moments of the 7,656 usable HH test pairs. These
are 4.0 ± 1.28 for prompts and 3.52 ± 1.08 for completions, in natural logs. Lengths are cut off where theirs end.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

PROMPT = (4.0, 1.28, 4, 550)
COMPLETION = (3.52, 1.08, 2, 210)
SYLLABLES = ["ba", "co", "di", "fu", "ga", "he", "li", "mo", "ne", "pa", "ri", "so", "tu", "ve", "wa", "ze"]


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its completions."""

    prompt: str
    completions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """The groups that are scored in one round, and the way in which they are sent.

    Attributes:
        name: name in the results.
        make: function that makes the groups from a seeded generator.
        clients: requests at the same time, of one item each; 0 for everything in one call.
        calls: one item after the other, each timed; what counts is the seconds of one.
    """

    name: str
    make: Callable[[random.Random], list[Group]]
    clients: int = 0
    calls: bool = False


def make_groups(workload: Workload, seed: int) -> list[Group]:
    """Make the groups of a round; another seed has other texts."""
    return workload.make(random.Random(f"{workload.name} {seed}"))


def make_workload(name: str, prompts: int, completions: int) -> Workload:
    """Make a workload of other size, which is scored in one call."""
    return Workload(name, lambda draw: _groups(draw, prompts, completions))


def make_text(draw: random.Random, words: int) -> str:
    """Make a text of words of one to four syllables, of about eight thousand different ones."""
    made = ("".join(draw.choices(SYLLABLES, k=draw.choice((1, 2, 2, 3)))) for _ in range(words))
    return " ".join(made)


def draw_words(draw: random.Random, length: tuple[float, float, int, int]) -> int:
    """Draw a number of words: log-normal by mean and deviation of its logarithm, within the last two numbers."""
    mean, deviation, least, most = length
    return min(most, max(least, round(math.exp(draw.gauss(mean, deviation)))))


def _groups(draw: random.Random, prompts: int, completions: int) -> list[Group]:
    return [
        Group(
            make_text(draw, draw_words(draw, PROMPT)),
            tuple(make_text(draw, draw_words(draw, COMPLETION)) for _ in range(completions)),
        )
        for _ in range(prompts)
    ]


def _fixed(draw: random.Random, items: int, prompt: int, completion: int) -> list[Group]:
    return [Group(make_text(draw, prompt), (make_text(draw, completion),)) for _ in range(items)]


WORKLOADS = (
    Workload("HH pairs", lambda draw: _groups(draw, 32, 2)),
    Workload("best of 16", lambda draw: _groups(draw, 5, 16)),
    Workload("best of 64", lambda draw: _groups(draw, 2, 64)),
    Workload("PPO, 64 prompts", lambda draw: _groups(draw, 64, 1), clients=64),
    Workload("PPO, 16 prompts x 4", lambda draw: _groups(draw, 16, 4), clients=64),
    Workload("one item of 150 tokens", lambda draw: _fixed(draw, 8, 65, 25), calls=True),
    Workload("one item of 40 tokens", lambda draw: _fixed(draw, 8, 10, 8), calls=True),
    Workload("dialogues of 2,000 tokens", lambda draw: _fixed(draw, 2, 1200, 100)),
)
