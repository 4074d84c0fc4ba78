"""In which numbers a base computes: what is chosen, what it gives and takes, and where it is named."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from assay_service.errors import StartError
from assay_service.loader import load
from assay_service.scoring.base_files import load_base
from assay_service.scoring.checkpoint import read_adapter
from assay_service.scoring.compute import Number, check_compute, decide_compute
from assay_service.scoring.head import Head
from assay_service.scoring.invariance import make_invariant
from assay_service.scoring.kernels import build
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from assay_service.settings import parse
from tests import checkpoints

CPU = torch.device("cpu")
BOTH = pytest.mark.usefixtures("kernels")
CLAIMS = {"score_position": "last_token", "eos": "template", "unfinished": "score", "max_length": 128}


def sequences(count: int = 6) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = tuple(torch.randint(8, 260, (5 + 17 * number,), generator=generator).tolist())
        made.append(TokenSequence(ids, 4, Span(len(ids) - 1, len(ids))))
    return made


def served(directory: Path, dtype: torch.dtype, compute: Number, adapter: Path | None = None) -> RewardModel:
    """A model with a signal `s`, on an adapter if there is one."""
    model = RewardModel(load_base(directory, dtype, CPU), CPU, compute)
    weight = torch.randn(1, model.hidden_size, generator=torch.Generator().manual_seed(1))
    model.add_signal("s", Head(weight, None), *([] if adapter is None else [read_adapter(adapter)[0]]))
    return model


def logits(model: RewardModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(sequences(), "s")


@pytest.mark.parametrize(
    ("declared", "dtype", "units", "chosen"),
    [
        ("auto", "bfloat16", True, "bfloat16"),
        ("auto", "bfloat16", False, "float32"),
        ("auto", "float16", False, "float32"),
        ("auto", "float32", True, "float32"),
        ("float32", "bfloat16", True, "float32"),
        ("bfloat16", "bfloat16", False, "bfloat16"),
    ],
)
def test_what_is_chosen(declared: Any, dtype: Any, units: bool, chosen: str) -> None:
    assert decide_compute(declared, dtype, "cpu", has_units=units) == chosen


@pytest.mark.parametrize(
    ("variable", "value"), [("ATEN_CPU_CAPABILITY", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")]
)
def test_a_cpu_that_may_not_use_its_instructions_has_no_units(variable: str, value: str) -> None:
    code = (
        "import torch; from assay_service.scoring.kernels.build import has_units; cpu = torch.device('cpu'); "
        "print(has_units('bfloat16', cpu), has_units('float32', cpu))"
    )
    environment = os.environ | {variable: value}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["False", "True"]


def check_widened(root: Path, architecture: str, dtype: torch.dtype) -> None:
    """Hold a base of `dtype` that computes in fp32 to the fp32 base whose weights have the same values."""
    fast = checkpoints.tokenizer_of(architecture)
    narrow = checkpoints.classifier(architecture, fast, hidden_size=48, intermediate_size=600).to(dtype)
    wide = copy.deepcopy(narrow).float()
    checkpoints.save(root / "narrow", narrow, fast)
    checkpoints.save(root / "wide", wide, fast)
    adapter, _ = checkpoints.save_adapter(root / "adapter", wide)
    for used in (None, adapter):
        bases = (root / "narrow", dtype), (root / "wide", torch.float32)
        models = [served(base, stored, "float32", used) for base, stored in bases]
        for model in models:
            model.make_invariant()
        assert torch.equal(*map(logits, models))


@pytest.mark.parametrize("architecture", checkpoints.CONFIGS)
def test_widened_weights_give_the_bits_of_an_fp32_base_with_the_same_values(architecture: str, tmp_path: Path) -> None:
    check_widened(tmp_path, architecture, torch.bfloat16)


@BOTH
@pytest.mark.parametrize(("architecture", "dtype"), [("llama", torch.float16), ("bert", torch.bfloat16)])
def test_widened_weights_on_either_kernels(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    check_widened(tmp_path, architecture, dtype)


@BOTH
def test_widened_weights_are_invariant(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    reference = checkpoints.classifier("llama", fast, hidden_size=64, max_position_embeddings=1024).bfloat16()
    model = served(checkpoints.save(tmp_path, reference, fast), torch.bfloat16, "float32")
    assert make_invariant(model, {"s": 1024}) == {"s": True}


MEASURED = """
import resource, sys, torch
from pathlib import Path
from tests.service.test_compute import logits, served
model = served(Path(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3])
model.make_invariant()
logits(model)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_widened_weights_take_no_more_memory(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 16}
    checkpoints.save(tmp_path, checkpoints.classifier("llama", fast, **size).bfloat16(), fast)
    peaks = []
    for dtype, compute in (("bfloat16", "bfloat16"), ("bfloat16", "float32")):
        command = [sys.executable, "-c", MEASURED, str(tmp_path), dtype, compute]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] <= 1.1 * peaks[0]
    model = served(tmp_path, torch.bfloat16, "float32")
    before = sum(p.nbytes for p in model.base.parameters())
    model.make_invariant()
    assert sum(p.nbytes for p in model.base.parameters()) <= 1.01 * before


def configure(root: Path, **declared: Any) -> dict[str, Any]:
    signal = {"base": "base", "kind": "preference", "dtype": "bfloat16", **CLAIMS, **declared}
    settings = parse({"signals": {"s": signal}, "default": "s"}, root)
    assert settings.settings is not None
    registry = load(settings.settings)
    served_signal = registry.signals["s"]
    return {"compute": served_signal.provenance.compute, "fingerprint": registry.fingerprint()}


def test_provenance_and_fingerprint_say_what_was_computed(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path / "base", checkpoints.classifier("llama", fast).bfloat16(), fast)
    wide, narrow, chosen = (
        configure(tmp_path, **kind) for kind in ({"compute": "float32"}, {"compute": "bfloat16"}, {})
    )
    assert (wide["compute"], narrow["compute"]) == ("float32", "bfloat16")
    assert wide["fingerprint"] != narrow["fingerprint"]
    assert chosen == (narrow if build.has_units("bfloat16", CPU) else wide)


@pytest.mark.parametrize(
    ("claimed", "declared", "message"),
    [
        (
            {"compute": "float32"},
            {"compute": "bfloat16"},
            "compute: declared 'bfloat16', but the checkpoint's manifest says 'float32'",
        ),
        ({"compute": "bfloat16"}, {"dtype": "float32"}, "compute: bfloat16 would round weights of `dtype: float32`"),
        ({}, {"compute": "float16"}, "compute: float16 would round weights of `dtype: bfloat16`"),
    ],
)
def test_a_manifest_may_require_numbers(
    claimed: dict[str, Any], declared: dict[str, Any], message: str, tmp_path: Path
) -> None:
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path / "base", checkpoints.classifier("llama", fast).bfloat16(), fast, **CLAIMS, **claimed)
    with pytest.raises(StartError) as caught:
        configure(tmp_path, **declared)
    assert message in caught.value.message


def test_vllm_computes_in_the_dtype_of_the_weights() -> None:
    check_compute("auto", "bfloat16", "vllm")
    with pytest.raises(StartError, match="but `engine: vllm` computes in `dtype: bfloat16`"):
        check_compute("float32", "bfloat16", "vllm")
