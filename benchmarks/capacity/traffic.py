"""Draw what clients ask: PPO bursts and best-of-N requests, with lengths like HH's; seeded, and without a clock."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.workloads import COMPLETION, PROMPT, draw_words

TOKENS_PER_WORD = 1.3  # of English text and the usual vocabularies
REMEMBERED = 2000  # requests of which some are asked again
HOT_PROMPT = "hot"


@dataclass(frozen=True, slots=True)
class Part:
    """Completions of one prompt that are computed together.

    Attributes:
        key: bytes that are equal for parts with the same prompt and completions.
        tokens: number of tokens of all its completions.
        items: number of completions.
    """

    key: bytes
    tokens: int
    items: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a prompt with completions.

    Attributes:
        key: affinity key of the prompt.
        prompt_tokens: number of tokens of the prompt.
        parts: parts of the completions; the simulation schedules and caches each as a whole.
    """

    key: str
    prompt_tokens: int
    parts: tuple[Part, ...]

    @property
    def items(self) -> int:
        """Return the number of completions."""
        return sum(part.items for part in self.parts)

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all items, each with its prompt."""
        return sum(part.tokens + part.items * self.prompt_tokens for part in self.parts)

    @property
    def least_tokens(self) -> int:
        """Return the number of tokens that are computed if the prompt is computed once."""
        return self.prompt_tokens + sum(part.tokens for part in self.parts)


@dataclass(frozen=True, slots=True)
class Shape:
    """The form of the groups that clients ask about.

    Attributes:
        completions: number of completions of a prompt.
        requests: number of requests in which the completions of one prompt are sent; it divides `completions`.
        repeated: share of groups that were asked before, such as in a second evaluation.
        hot: share of groups that have one and the same prompt, each with new completions.
    """

    completions: int
    requests: int = 1
    repeated: float = 0.0
    hot: float = 0.0


def draw_groups(draw: random.Random, shape: Shape) -> Iterator[list[Ask]]:
    """Yield groups without end, each as the requests for one prompt.

    Raises:
        ValueError: the requests of a group do not have the same number of completions.
    """
    if shape.completions % shape.requests:
        raise ValueError(f"{shape.completions} completions cannot be divided into {shape.requests} equal requests")
    earlier: deque[list[Ask]] = deque(maxlen=REMEMBERED)
    hot_tokens = _draw_tokens(draw, PROMPT)
    while True:
        if earlier and draw.random() < shape.repeated:
            yield earlier[draw.randrange(len(earlier))]
            continue
        is_hot = draw.random() < shape.hot
        key = HOT_PROMPT if is_hot else f"{draw.getrandbits(64):x}"
        prompt = hot_tokens if is_hot else _draw_tokens(draw, PROMPT)
        each = shape.completions // shape.requests
        group = [Ask(key, prompt, (_draw_part(draw, each),)) for _ in range(shape.requests)]
        earlier.append(group)
        yield group


def _draw_part(draw: random.Random, items: int) -> Part:
    return Part(draw.randbytes(16), sum(_draw_tokens(draw, COMPLETION) for _ in range(items)), items)


def _draw_tokens(draw: random.Random, length: tuple[float, float, int, int]) -> int:
    return round(draw_words(draw, length) * TOKENS_PER_WORD)
