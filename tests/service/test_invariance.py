"""A score does not depend on what else is computed: bit for bit, in fp32 and bf16 (scoring-traps: the batch)."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from assay_service.scoring.checkpoint import read_adapter
from assay_service.scoring.head import Head
from assay_service.scoring.invariance import find_invariant, make_invariant
from assay_service.scoring.kernels.row_invariant import _ACTIVATIONS
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from tests import checkpoints

BOTH = pytest.mark.usefixtures("kernels")
DTYPES = (torch.float32, torch.bfloat16)
WIDE = {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 6, "max_position_embeddings": 1024}
ODD = {"hidden_size": 60, "intermediate_size": 77, "num_attention_heads": 6, "max_position_embeddings": 1024}


def load(root: Path, architecture: str, dtype: torch.dtype, adapters: tuple[str, ...] = (), **size: Any) -> RewardModel:
    """A random model with a signal `s`, and one for each adapter, made invariant."""
    fast = checkpoints.tokenizer_of(architecture)
    reference = checkpoints.classifier(architecture, fast, initializer_range=0.05, **(WIDE | size))
    model = RewardModel.load(checkpoints.save(root / "base", reference, fast), dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    model.add_signal("s", Head(torch.randn(1, model.hidden_size, generator=generator), torch.ones(1)))
    for seed, name in enumerate(adapters):
        directory, _ = checkpoints.save_adapter(root / name, copy.deepcopy(reference), seed=seed)
        adapter, _ = read_adapter(directory)
        model.add_signal(name, Head(torch.randn(1, model.hidden_size, generator=generator), None), adapter)
    model.make_invariant()
    return model


def groups(*shapes: tuple[int, tuple[int, ...]], seed: int = 0) -> list[TokenSequence]:
    """Sequences of random ids: (prompt tokens, completion tokens of those that share it)."""
    draw = random.Random(seed)
    made = []
    for prompt_tokens, completions in shapes:
        prompt = tuple(draw.randrange(8, 260) for _ in range(prompt_tokens))
        for tokens in completions:
            ids = prompt + tuple(draw.randrange(8, 260) for _ in range(tokens))
            made.append(TokenSequence(ids, prompt_tokens, Span(len(ids) - 1, len(ids))))
    return made


def logits(model: RewardModel, sequences: list[TokenSequence], name: str = "s") -> list[float]:
    with torch.inference_mode():
        return [float(logit) for logit in model.logits(sequences, name)]


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("architecture", "size"),
    [*((name, WIDE) for name in checkpoints.CONFIGS), ("llama", ODD), ("bert", ODD)],
    ids=lambda value: value if isinstance(value, str) else f"{value['hidden_size']} wide",
)
def test_alone_together_shuffled_and_among_strangers(
    architecture: str, dtype: torch.dtype, size: dict[str, Any], tmp_path: Path
) -> None:
    model = load(tmp_path, architecture, dtype, **size)
    subjects = groups((150, (5, 300, 1)), (1, (64,)), (64, (64, 63, 65)), (0, (10, 90)))
    strangers = groups((33, (200, 7)), (5, (5,)), seed=1)
    alone = [logits(model, [subject])[0] for subject in subjects]
    assert len(set(alone)) == len(alone)
    assert logits(model, subjects) == alone
    assert logits(model, subjects[::-1]) == alone[::-1]
    assert logits(model, strangers + subjects)[len(strangers) :] == alone


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_length_from_one_token_to_six_hundred(dtype: torch.dtype, tmp_path: Path) -> None:
    model = load(tmp_path, "llama", dtype)
    subjects = [groups((min(n - 1, 20), (n - min(n - 1, 20),)), seed=n)[0] for n in range(1, 601)]
    alone = [logits(model, [subject])[0] for subject in subjects]
    for start in range(0, len(subjects), 25):
        assert logits(model, subjects[start : start + 25]) == alone[start : start + 25]


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_a_sequence_lies_in_the_row_does_not_matter(dtype: torch.dtype, tmp_path: Path) -> None:
    model = load(tmp_path, "llama", dtype)
    subject = groups((40, (30,)))
    expected = logits(model, subject)[0]
    for offset in range(1, 140, 3):
        before = groups((0, (offset,)), seed=offset)
        assert logits(model, before + subject)[1] == expected


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adapters_and_the_bare_base_are_each_invariant(dtype: torch.dtype, tmp_path: Path) -> None:
    model = load(tmp_path, "llama", dtype, adapters=("first", "second"))
    subjects = groups((50, (5, 100)), (7, (64,)))
    alone = {name: [logits(model, [s], name)[0] for s in subjects] for name in ("s", "first", "second")}
    assert len({tuple(values) for values in alone.values()}) == 3
    for name in ("second", "s", "first", "second"):
        assert logits(model, subjects, name) == alone[name]


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sibling_whose_numbers_are_poison_changes_nobody(dtype: torch.dtype, tmp_path: Path) -> None:
    model = load(tmp_path, "llama", dtype)
    poison = 300
    with torch.no_grad():
        model.base.get_input_embeddings().weight[poison] = float("nan")
    healthy = groups((64, (20, 21)))
    expected = logits(model, healthy)
    sick = TokenSequence((*healthy[0].prompt, poison, 9), 64, Span(65, 66))
    mixed = logits(model, [healthy[0], sick, healthy[1]])
    assert [mixed[0], mixed[2]] == expected
    assert mixed[1] != mixed[1]


@BOTH
@pytest.mark.parametrize("threads", [1, 2])
def test_the_proof_at_start_holds_for_every_thread_count(threads: int, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = load(tmp_path, "llama", torch.bfloat16)
        assert make_invariant(model, {"s": 1024}) == {"s": True}
        assert find_invariant(model, ["s"], 12) == {"s": True}
    finally:
        torch.set_num_threads(before)


@BOTH
def test_the_proof_finds_a_model_whose_rows_see_each_other(tmp_path: Path) -> None:
    model = load(tmp_path, "llama", torch.float32)
    attention = model.base.layers[0].self_attn
    honest = attention.v_proj.forward
    attention.v_proj.forward = lambda rows: honest(rows) + 1e-6 * rows.shape[1]
    assert find_invariant(model, ["s"], 1024) == {"s": False}


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_that_get_one_token_or_nearly_all_give_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    """Rows of an expert, and with them the shape of its products, depend on all tokens of a row."""
    size: dict[str, Any] = {"num_experts": 16, "moe_intermediate_size": 80, "mlp_only_layers": []}
    model = load(tmp_path, "qwen3_moe", dtype, **size)
    one, other, *_ = groups((0, (1,)), (0, (1,)), seed=3)
    same = TokenSequence(one.ids * 700, 0, Span(699, 700))  # every token has nearly the same experts
    subjects = [one, same, *groups((20, (1, 40)), (3, (300,)))]
    alone = [logits(model, [subject])[0] for subject in subjects]
    for crowd in ([], [other] * 50, [same] * 2, groups((90, (500, 9)), seed=8)):
        assert logits(model, [*crowd, *subjects])[len(crowd) :] == alone


@pytest.mark.parametrize("architecture", checkpoints.CONFIGS)
def test_every_activation_is_found_where_its_remainders_are_sliced(architecture: str) -> None:
    """An activation under another attribute would stay as it is, and on some machines depend on the row."""
    base = checkpoints.classifier(architecture, checkpoints.tokenizer_of(architecture)).base_model
    kinds = tuple({type(ACT2FN[name]) for name in ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu")})
    names = {name for module in base.modules() for name, child in module.named_children() if isinstance(child, kinds)}
    assert names
    assert names <= set(_ACTIVATIONS)
