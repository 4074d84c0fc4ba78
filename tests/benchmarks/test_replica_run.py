"""The traffic that replicas are compared by, against services of tiny models."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bursts import BEST_OF_16, PPO, Kind, count_tokens, make_burst, split_group
from benchmarks.models import make_words, train_tokenizer
from benchmarks.replica_run import Run, measure_run
from benchmarks.served import read_samples
from benchmarks.workloads import Group

import assay_service
from tests.compat.conftest import run_app
from tests.service.conftest import tiny

__all__ = ["tiny"]  # the fixture

SINGLE = Kind("single", "one item of 40 tokens", 4, single=True, barrier=True)
RANKED = Kind("ranked", "one item of 40 tokens", 2, single=False, barrier=False)


@pytest.fixture(scope="module")
def urls(tiny: dict[str, Any]) -> Iterator[list[str]]:
    """Two services of the same model."""
    file: Path = tiny["root"] / "replicas.yaml"
    file.write_text("signals:\n  s: {base: base, adapter: pref}\n")
    with ExitStack() as stack:
        apps = [assay_service.create_app(assay_service.read_settings(file)) for _ in range(2)]
        yield [stack.enter_context(run_app(app)).url for app in apps]


def measure(kind: Kind, urls: list[str], routing: str, first: int) -> Run:
    return asyncio.run(
        measure_run("2 x 1", kind, urls, routing, first, 0.05, lambda group: 10 * len(group.completions))
    )


def test_a_burst_repeats_a_quarter_of_the_burst_before() -> None:
    first, second = make_burst(PPO, 5), make_burst(PPO, 6)
    assert len(first) == len(second) == 16
    assert second[12:] == first[:4]
    assert not set(second[:12]) & set(first)
    assert len(split_group(PPO, first[0])) == 4
    assert split_group(BEST_OF_16, first[0]) == [first[0]]


@pytest.mark.parametrize(("kind", "routing"), [(SINGLE, "affinity"), (RANKED, "random")])
def test_a_run_counts_what_the_services_did(urls: list[str], kind: Kind, routing: str) -> None:
    run = measure(kind, urls, routing, 1000 if kind is SINGLE else 2000)
    assert run.items == run.requests >= 8 * run.bursts - 7
    assert run.hits + run.misses == run.items
    assert run.asked_tokens == 10 * run.items
    assert run.passes >= 1
    assert run.computed_tokens > run.misses
    assert 0 < run.forward_s < 2 * run.seconds
    assert run.refusals == 0


def test_affinity_finds_every_repeated_item_and_a_random_choice_may_not(urls: list[str]) -> None:
    run = measure(SINGLE, urls, "affinity", 3000)
    assert run.hits == 2 * (run.bursts - 1)  # of eight groups, two were in the burst before


def test_tokens_are_counted_as_a_template_prints_them() -> None:
    """The template opens an answer without its line break, which so belongs to the completion, as does the end."""
    tokenizer = train_tokenizer(make_words())
    prompt, completions = count_tokens(tokenizer, Group("ba", ("ba", "ba ba")))
    text = "<|im_start|>user\nba<|im_end|><|im_start|>assistant"
    assert prompt == len(tokenizer.tokenize(text))
    assert completions == [len(tokenizer.tokenize(f"\n{ending}<|im_end|>")) for ending in ("ba", "ba ba")]


def test_samples_have_the_values_of_their_labels() -> None:
    text = '# TYPE a_total counter\na_total{result="hit"} 3.0\n# TYPE b gauge\nb 2.5\n'
    assert read_samples(text) == {"a_total hit": 3.0, "b": 2.5}
