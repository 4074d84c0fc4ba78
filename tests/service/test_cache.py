"""What may share a remembered logit, and how much is remembered."""

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from assay_service import loader
from assay_service.engine.cache import ResultCache, compute_key, count_bytes
from assay_service.registry import Registry
from assay_service.scoring.item import Item, Message
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from tests import checkpoints


@pytest.fixture(scope="module")
def served(tiny: dict[str, Any]) -> Registry:
    return loader.load(tiny["settings"])


SEQUENCE = TokenSequence((1, 2, 3, 4), 2, Span(3, 4))


@pytest.mark.parametrize(
    "other",
    [
        TokenSequence((9, 2, 3, 4), 2, Span(3, 4)),
        TokenSequence((1, 2, 3, 9), 2, Span(3, 4)),
        TokenSequence((1, 2, 3, 4), 1, Span(3, 4)),
        TokenSequence((1, 2, 3, 4), 2, Span(2, 3)),
        TokenSequence((1, 2, 3, 4), 2, Span(2, 4)),
        TokenSequence((1, 2, 3, 4), 2, Span(3, 4), 2),
        TokenSequence((1, 2, 3, 4, 4), 2, Span(3, 4)),
        TokenSequence((2, 3, 4, 1, 2, 3, 4), 2, Span(3, 4)),
    ],
    ids=[
        "prompt ids",
        "completion ids",
        "boundary",
        "position",
        "span",
        "second segment",
        "longer",
        "numbers that run together",
    ],
)
def test_another_sequence_has_another_key(other: TokenSequence) -> None:
    assert compute_key("signal", SEQUENCE) == compute_key("signal", replace(SEQUENCE))
    assert compute_key("signal", SEQUENCE) != compute_key("signal", other)


def test_tokens_that_are_averaged_and_predicted_have_different_keys() -> None:
    averaged = TokenSequence((1, 2, 3, 4), 2, Span(2, 3))
    assert compute_key("signal", averaged) != compute_key("signal", replace(averaged, predicts=True))


def test_another_signal_has_another_key() -> None:
    assert compute_key("signal", SEQUENCE) != compute_key("other", SEQUENCE)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("revision", "another"),
        ("dtype", "bfloat16"),
        ("compute", "bfloat16"),
        ("adapter_sha256", "another"),
        ("head_sha256", "another"),
        ("template_sha256", "another"),
        ("model", "another"),
    ],
)
def test_every_part_of_a_signal_is_in_its_identity(part: str, value: str, served: Registry) -> None:
    signal = served.signals["pref"]
    fields: dict[str, Any] = {part: value}
    changed = replace(signal, provenance=replace(signal.provenance, **fields))
    other = Registry({**served.signals, "pref": changed}, served.blends, served.default, served.invariant)
    assert other.identities["pref"] != served.identities["pref"]
    assert other.identities["abs"] == served.identities["abs"]


def test_a_signal_whose_invariance_is_not_proved_has_no_identity(served: Registry) -> None:
    doubted = Registry(served.signals, served.blends, served.default, {**served.invariant, "pref": False})
    assert "pref" not in doubted.identities


def test_truncation_finish_reason_and_score_position_give_other_sequences() -> None:
    fast = checkpoints.decoder_tokenizer()

    def render(item: Item, position: str = "last_token", length: int = 60) -> TokenSequence:
        rules = RenderRules(fast.chat_template, length, position, "template", "score", fast.pad_token_id)  # type: ignore[arg-type]
        return Renderer(fast, rules, len(fast)).render(item, "prompt_left").sequence

    long, cut = Item.of("the quick brown fox " * 3, "yes"), Item.of("fox", "yes", "length")
    sequences = [
        render(long),
        render(long, length=24),
        render(cut),
        render(Item.of("fox", "yes")),
        render(Item.of("fox", "yes"), position="mean"),
        render(
            Item((Message("user", "fox"), Message("assistant", "y"), Message("user", "e"), Message("assistant", "s")))
        ),
    ]
    assert len({compute_key("signal", sequence) for sequence in sequences}) == len(sequences)


def test_the_least_recently_used_is_forgotten() -> None:
    cache = ResultCache(2 * count_bytes(((1.0,),)))
    cache.put(b"1", ((1.0,),))
    cache.put(b"2", ((2.0,),))
    assert cache.get(b"1") == ((1.0,),)
    cache.put(b"3", ((3.0,),))
    assert [cache.get(key) for key in (b"1", b"2", b"3")] == [((1.0,),), None, ((3.0,),)]
    assert cache.size_bytes == 2 * count_bytes(((1.0,),))
    cache.put(b"3", ((4.0, 5.0), (6.0,)))
    assert cache.get(b"1") is None
    assert cache.size_bytes == count_bytes(((4.0, 5.0), (6.0,)))


@pytest.mark.parametrize("steps", [1, 20])
def test_it_stays_within_its_bytes(steps: int) -> None:
    most = 3 * 2**20
    cache = ResultCache(most)
    tracemalloc.start()
    for number in range(50_000):
        cache.put(
            compute_key("signal", TokenSequence((number,), 0, Span(0, 1))),
            (tuple(number / (7 + step) for step in range(steps)),),
        )
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cache.size_bytes <= most
    assert size <= most


def test_a_cache_of_no_bytes_remembers_nothing() -> None:
    cache = ResultCache(0)
    cache.put(b"1", ((1.0,),))
    assert cache.get(b"1") is None
