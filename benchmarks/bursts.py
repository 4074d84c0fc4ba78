"""Make the traffic by which replicas are compared: PPO bursts and best-of-N rankings, some of them asked again."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from benchmarks.workloads import WORKLOADS, Group, make_groups

REPEATED = 4  # every so many groups of a burst were in the burst before


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of asking.

    Attributes:
        name: name in the results.
        workload: name of the workload that has the groups of a burst.
        width: most requests in flight.
        single: each item is a request of its own; otherwise each prompt is a ranking.
        barrier: a burst begins when the last one has ended; otherwise one request follows the other.
    """

    name: str
    workload: str
    width: int
    single: bool
    barrier: bool


PPO = Kind("PPO bursts", "PPO, 16 prompts x 4", 64, single=True, barrier=True)
BEST_OF_16 = Kind("best of 16", "best of 16", 8, single=False, barrier=False)
KINDS = (PPO, BEST_OF_16)


def make_burst(kind: Kind, number: int) -> list[Group]:
    """Make a burst: fresh groups, and some of the burst before; the same number gives the same texts."""
    workload = next(workload for workload in WORKLOADS if workload.name == kind.workload)
    fresh = make_groups(workload, number)
    again = -(-len(fresh) // REPEATED)
    return fresh[:-again] + make_groups(workload, number - 1)[:again]


def make_bursts(kind: Kind, first: int) -> Iterator[list[Group]]:
    """Yield bursts without end, from a number on."""
    number = first
    while True:
        yield make_burst(kind, number)
        number += 1


def split_group(kind: Kind, group: Group) -> list[Group]:
    """Return the group of each request."""
    return [Group(group.prompt, (text,)) for text in group.completions] if kind.single else [group]


def count_tokens(tokenizer: PreTrainedTokenizerFast, group: Group) -> tuple[int, list[int]]:
    """Return the tokens of the prompt, and those of each completion, as the service counts them."""
    user = [{"role": "user", "content": group.prompt}]
    prompt = _count(tokenizer, user, opens=True)
    whole = [[*user, {"role": "assistant", "content": text}] for text in group.completions]
    return prompt, [_count(tokenizer, messages, opens=False) - prompt for messages in whole]


def _count(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], *, opens: bool) -> int:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
