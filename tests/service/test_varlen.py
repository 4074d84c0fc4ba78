"""Attention on a GPU: the gathering here, against FlashAttention's definition; the rest where there is a GPU."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from assay_service.scoring.architectures import ARCHITECTURES
from assay_service.scoring.head import Head
from assay_service.scoring.invariance import make_invariant
from assay_service.scoring.kernels import build, varlen
from assay_service.scoring.kernels.backend import Kernels
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from tests import checkpoints

GROUPS = ((40, (1, 30, 7)), (1, (5,)), (0, (20,)), (70, (64, 3)))


def sequences() -> list[TokenSequence]:
    draw, made = torch.Generator().manual_seed(0), []
    for prompt_tokens, completions in GROUPS:
        prompt = torch.randint(8, 260, (prompt_tokens,), generator=draw).tolist()
        for tokens in completions:
            ids = (*prompt, *torch.randint(8, 260, (tokens,), generator=draw).tolist())
            made.append(TokenSequence(ids, prompt_tokens, Span(len(ids) - 1, len(ids))))
    return made


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
    num_splits: int = 1,
) -> torch.Tensor:
    """As its documentation defines it, a segment at a time: the last query is aligned with the last key."""
    assert num_splits == 1
    assert enable_gqa == (query.shape[1] != key.shape[1])  # without the flag, heads must be as many
    group, out = query.shape[1] // key.shape[1], torch.empty_like(query)
    ends = zip(cu_seq_q.tolist(), cu_seq_q[1:].tolist(), cu_seq_k.tolist(), cu_seq_k[1:].tolist(), strict=False)
    for q_start, q_end, k_start, k_end in ends:
        assert q_end - q_start <= max_q
        assert k_end - k_start <= max_k
        ages = torch.arange(k_end - k_start - (q_end - q_start), k_end - k_start)[:, None] - torch.arange(
            k_end - k_start
        )
        left, right = window_size
        hidden = ((ages > left) if left >= 0 else ages < -(10**9)) | (
            (ages < -right) if right >= 0 else ages < -(10**9)
        )
        for head in range(query.shape[1]):
            scores = query[q_start:q_end, head] @ key[k_start:k_end, head // group].T * scale
            weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
            out[q_start:q_end, head] = weights @ value[k_start:k_end, head // group]
    return out


@pytest.mark.parametrize("parameters", [("enable_gqa", "num_splits"), ()], ids=["torch 2.13", "torch 2.11"])
@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "qwen2", "gemma3_text", "qwen3_moe", "gpt_neox", "bert", "modernbert"]
)
def test_gathered_keys_give_the_oracle_logit(
    architecture: str, parameters: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", flash_attention)
    monkeypatch.setattr(varlen, "_PARAMETERS", parameters)
    monkeypatch.setattr(build, "load_or_explain", lambda *_: "a GPU has none")
    monkeypatch.setattr(varlen, "is_usable", lambda *_: True)
    fast = checkpoints.tokenizer_of(architecture)
    reference = checkpoints.classifier(architecture, fast)
    model = RewardModel.load(checkpoints.save(tmp_path, reference, fast), torch.float32, torch.device("cpu"))
    model.add_signal("s", Head(torch.ones(1, model.hidden_size), None))
    with torch.inference_mode():
        expected = [model.logits([sequence], "s").item() for sequence in sequences()]  # as test_parity has it
        model.make_invariant()
        assert model.kernels == Kernels("varlen")
        assert model.logits(sequences(), "s").tolist() == pytest.approx(expected, abs=1e-4)


def test_scores_that_flash_attention_cannot_bound_are_computed_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "load_or_explain", lambda *_: "a GPU has none")
    monkeypatch.setattr(varlen, "is_usable", lambda *_: True)
    for softcap, name in ((2.0, "torch"), (None, "varlen")):
        fast = checkpoints.tokenizer_of("gemma2")
        reference = checkpoints.classifier("gemma2", fast, attn_logit_softcapping=softcap)
        directory = checkpoints.save(tmp_path / name, reference, fast)
        model = RewardModel.load(directory, torch.float32, torch.device("cpu"))
        model.make_invariant()
        assert model.kernels.name == name


def test_where_flash_attention_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, capability = torch.device("cuda"), [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability[0])
    assert varlen.is_usable(torch.bfloat16, cuda, 64)
    assert not varlen.is_usable(torch.float32, cuda, 64)
    assert not varlen.is_usable(torch.bfloat16, cuda, 26)
    assert not varlen.is_usable(torch.bfloat16, torch.device("cpu"), 64)
    capability[0] = (7, 5)
    assert not varlen.is_usable(torch.float16, cuda, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", [name for name in checkpoints.CONFIGS if ARCHITECTURES[name].packed])
def test_on_a_gpu_logits_are_invariant_and_near_those_of_the_cpu(architecture: str, tmp_path: Path) -> None:
    size: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 6}
    fast = checkpoints.tokenizer_of(architecture)
    reference = checkpoints.classifier(architecture, fast, max_position_embeddings=1024, **size)
    directory = checkpoints.save(tmp_path, reference, fast)
    logits = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        model = RewardModel.load(directory, dtype, torch.device(device))
        model.add_signal("s", Head(torch.ones(1, model.hidden_size), None))
        assert make_invariant(model, {"s": 1024}) == {"s": True}
        with torch.inference_mode():
            logits[device] = model.logits(sequences(), "s").cpu()
    assert (logits["cpu"] - logits["cuda"]).abs().max() < 0.05 * logits["cpu"].std()
