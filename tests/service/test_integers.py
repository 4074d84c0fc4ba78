"""Products of 8-bit integers: exact at the extremes, the same bits by every path, and close to fp32."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from assay_service.errors import StartError
from assay_service.scoring.base_files import load_base
from assay_service.scoring.checkpoint import read_adapter
from assay_service.scoring.compute import Number, decide_compute
from assay_service.scoring.head import Head
from assay_service.scoring.invariance import make_invariant
from assay_service.scoring.kernels import build
from assay_service.scoring.kernels.integer_linear import IntegerLinear, make_integer
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from tests import checkpoints

CPU = torch.device("cpu")
BOTH = pytest.mark.usefixtures("kernels")
REASON = build.load_or_explain(torch.float32, CPU)
native = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def integer_layer(inputs: int, outputs: int, *, bias: bool = True) -> IntegerLinear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    make_integer(layer)
    assert isinstance(layer, IntegerLinear)
    return layer


def by_kernels(layer: IntegerLinear, rows: torch.Tensor) -> torch.Tensor:
    panels = torch.ops.assay.pack_integers(layer.weight, layer.scales)
    product: torch.Tensor = torch.ops.assay.linear(rows, panels, layer.bias, layer.out_features)
    return product


@native
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (76, 33), (4, 16), (768, 300), (3072, 64)])
def test_the_kernels_have_the_bits_of_torch(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    layer, rows = integer_layer(inputs, outputs), torch.randn(217, inputs) * 3
    rows[0], rows[1, 0], rows[2, 1], rows[3] = 0, torch.nan, torch.inf, 1e-42
    with torch.inference_mode():
        expected, given = layer(rows), by_kernels(layer, rows)
        assert torch.equal(given[3:], expected[3:])
        assert torch.equal(given[0], expected[0])
        assert given[1:3].isnan().all()
        assert expected[1:3].isnan().all()
        for start, end in ((5, 6), (64, 200), (40, 217)):
            assert torch.equal(by_kernels(layer, rows[start:end]), given[start:end])


@native
def test_gated_products_of_integers() -> None:
    torch.manual_seed(0)
    gate, up, rows = integer_layer(96, 77, bias=False), integer_layer(96, 77, bias=False), torch.randn(130, 96)
    panels = [torch.ops.assay.pack_integers(layer.weight, layer.scales) for layer in (gate, up)]
    with torch.inference_mode():
        expected = torch.ops.assay.gate(gate(rows), up(rows), False)
        assert torch.allclose(torch.ops.assay.gated(rows, *panels, False, 77), expected, rtol=1e-6, atol=1e-7)


def extremes(inputs: int) -> tuple[IntegerLinear, torch.Tensor, torch.Tensor]:
    """A layer whose integers are all 127 or all -127, rows of the largest numbers of either sign, and their sums."""
    layer = integer_layer(inputs, 32, bias=False)
    layer.weight.data.fill_(127)
    layer.weight.data[16:].fill_(-127)
    layer.scales.fill_(1.0)
    rows = torch.tensor([127.0, -127.0])[:, None].expand(2, inputs).contiguous()
    sums = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat_interleave(16, 1) * (127 * 127 * inputs)
    return layer, rows, sums


@pytest.mark.parametrize("inputs", [4, 64, 1044, 8192])
def test_sums_of_the_largest_numbers_are_exact(inputs: int) -> None:
    layer, rows, sums = extremes(inputs)
    with torch.inference_mode():
        assert torch.equal(layer(rows), sums)
        if REASON is None:
            assert torch.equal(by_kernels(layer, rows), sums)


@native
@pytest.mark.parametrize("inputs", [4, 60, 1028])
def test_sums_are_those_of_64_bit_integers(inputs: int) -> None:
    """Random integers of the whole range, and the largest magnitude with alternating signs."""
    torch.manual_seed(0)
    layer = integer_layer(inputs, 150, bias=False)
    layer.weight.data = torch.randint(-127, 128, (150, inputs), dtype=torch.int8)
    layer.weight.data[:8] = (torch.arange(inputs) % 2 * 254 - 127).to(torch.int8)
    layer.scales.fill_(1.0)
    rows = torch.randint(-127, 128, (59, inputs))
    rows[:4] = torch.arange(inputs) % 2 * 254 - 127
    rows[:, 0] = 127  # the largest magnitude, so that the scale is 1
    expected = (rows @ layer.weight.long().T).float()
    with torch.inference_mode():
        for start, end in ((0, 59), *((at, at + count) for count in range(1, 8) for at in (0, 3, 26))):
            assert torch.equal(by_kernels(layer, rows[start:end].float()), expected[start:end])


@native
def test_an_integer_without_a_negative_is_refused() -> None:
    with pytest.raises(RuntimeError, match="integers below -127"):
        torch.ops.assay.pack_integers(torch.full((16, 4), -128, dtype=torch.int8), torch.ones(16))


def hash_of_products() -> str:
    """Return the SHA-256 of some products, with the extremes among them, by the kernels of this process."""
    assert build.load_or_explain(torch.float32, CPU) is None
    torch.manual_seed(0)
    # Not `randn`, whose numbers differ between CPUs.
    parts = [(integer_layer(inputs, 77), torch.rand(141, inputs) - 0.5) for inputs in (12, 300, 1500)]
    made = [by_kernels(layer, rows) for layer, rows in (*parts, extremes(512)[:2])]
    return hashlib.sha256(b"".join(product.detach().numpy().tobytes() for product in made)).hexdigest()


# What makes a process compute as on another kind of CPU.
KINDS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avx512_vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
}


def served(directory: Path, dtype: torch.dtype, compute: Number, adapter: Path | None = None) -> RewardModel:
    model = RewardModel(load_base(directory, dtype, CPU), CPU, compute)
    weight = torch.randn(1, model.hidden_size, generator=torch.Generator().manual_seed(1))
    model.add_signal("s", Head(weight, None), *([] if adapter is None else [read_adapter(adapter)[0]]))
    model.make_invariant()
    return model


def logits(model: RewardModel) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(8, 260, (5 + 9 * number,), generator=draw).tolist() for number in range(20)]
    with torch.inference_mode():
        return model.logits([TokenSequence(tuple(ids), 4, Span(len(ids) - 1, len(ids))) for ids in rows], "s")


@pytest.mark.parametrize("architecture", checkpoints.CONFIGS)
def test_every_architecture_computes_near_fp32(architecture: str, tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of(architecture)
    base = checkpoints.classifier(architecture, fast, hidden_size=64, initializer_range=0.05)
    directory = checkpoints.save(tmp_path / "base", base, fast)
    adapter, _ = checkpoints.save_adapter(tmp_path / "adapter", base)
    exact, near = (logits(served(directory, torch.float32, compute, adapter)) for compute in ("float32", "int8"))
    assert not torch.equal(exact, near)
    assert float((exact - near).abs().mean() / exact.std()) < 0.1


def hash_of_logits(directory: Path) -> str:
    """Return the SHA-256 of the logits of a base in int8, in this process."""
    model = RewardModel(load_base(directory, torch.float32, CPU), CPU, "int8")
    model.add_signal("s", Head(torch.arange(model.hidden_size)[None] / 97 - 0.3, None))
    model.make_invariant()
    return hashlib.sha256(logits(model).numpy().tobytes()).hexdigest()


@native
@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"), reason="without AVX-512 no other kind is imitated"
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_with_fewer_instructions_has_the_same_bits(kind: str, tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path, checkpoints.classifier("llama", fast, hidden_size=96, intermediate_size=160), fast)
    code = (
        "import sys; from pathlib import Path; "
        "from tests.service.test_integers import hash_of_logits, hash_of_products; "
        "print(hash_of_products(), hash_of_logits(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | KINDS[kind],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [hash_of_products(), hash_of_logits(tmp_path)]


@BOTH
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_integers_are_invariant(architecture: str, tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of(architecture)
    reference = checkpoints.classifier(architecture, fast, hidden_size=64, max_position_embeddings=1024)
    model = served(checkpoints.save(tmp_path, reference, fast), torch.bfloat16, "int8")
    assert make_invariant(model, {"s": 1024}) == {"s": True}


def test_integers_take_half_the_memory_of_bf16(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    reference = checkpoints.classifier("llama", fast, hidden_size=512, intermediate_size=2048, num_attention_heads=8)
    directory = checkpoints.save(tmp_path, reference, fast)
    taken = []
    # In bf16 it is not made invariant: that moves its weights, and takes minutes where bf16 is emulated.
    narrow = RewardModel(load_base(directory, torch.bfloat16, CPU), CPU, "bfloat16")
    for model in (narrow, served(directory, torch.bfloat16, "int8")):
        tensors = {tensor.data_ptr(): tensor for tensor in (*model.base.parameters(), *model.base.buffers())}
        taken.append(sum(tensor.nbytes for tensor in tensors.values()))
    assert taken[1] <= 0.6 * taken[0]


def test_integers_are_refused_on_a_gpu() -> None:
    with pytest.raises(StartError, match="compute: int8 is only for CPUs, not for cuda"):
        decide_compute("int8", "bfloat16", "cuda", has_units=True)
