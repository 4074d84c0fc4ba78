"""The C++ kernels, each against the same in torch and double precision, and a row of each against itself alone."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu, linear, silu

from assay_service.scoring.kernels import build
from assay_service.scoring.kernels.fused import build_segment_table
from assay_service.scoring.layout import Layout, Span, TokenSequence, pack

CPU = torch.device("cpu")
REASON, REASON_BF16 = (build.load_or_explain(dtype, CPU) for dtype in (torch.float32, torch.bfloat16))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
bf16 = pytest.mark.skipif(REASON_BF16 is not None, reason=str(REASON_BF16))
ops = torch.ops.assay
DTYPES = (torch.float32, pytest.param(torch.bfloat16, marks=bf16))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Relative to what there is, and to one where there is little."""
    return bool(((got.double() - expected).abs() <= TOLERANCE[got.dtype] * (1 + expected.abs())).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (64, 1), (48, 17), (2, 300), (768, 384)])
def test_products(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, w, b = (
        torch.randn(3, 217, inputs).to(dtype),
        (torch.randn(outputs, inputs) / inputs**0.5).to(dtype),
        torch.randn(outputs),
    )
    packed = ops.pack(w)
    expected = linear(x.double(), w.double())
    assert close(ops.linear(x, packed, None, outputs), expected)
    assert close(ops.linear(x, packed, b, outputs), expected + b)
    hidden = torch.randn(3, 217, outputs).to(dtype)
    before = hidden.double()
    ops.linear_add(hidden, x, packed, b)
    assert close(hidden, before + expected + b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tanh", "activation"), [(False, silu), (True, lambda x: gelu(x, approximate="tanh"))])
def test_gated_products(tanh: bool, activation: object, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, gate, up = ((torch.randn(n, 96) / scale).to(dtype) for n, scale in ((130, 1), (77, 5), (77, 5)))
    assert callable(activation)
    expected = activation(linear(x.double(), gate.double())) * linear(x.double(), up.double())
    assert close(ops.gated(x, ops.pack(gate), ops.pack(up), tanh, 77), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 77, 5])
def test_gates_of_products_that_an_adapter_has_changed(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(2, 65, width).to(dtype) * 4 for _ in "gu")
    for tanh in (False, True):
        wide = gate.double()
        expected = (gelu(wide, approximate="tanh") if tanh else silu(wide)) * up.double()
        got = ops.gate(gate, up, tanh)
        assert close(got, expected)
        assert torch.equal(ops.gate(gate[:, 7:9], up[:, 7:9], tanh), got[:, 7:9])


def test_gates_that_are_wide_open_shut_or_broken() -> None:
    one = ops.pack(torch.eye(16))
    assert ops.gated(torch.full((1, 16), math.nan), one, one, False, 16).isnan().all()
    alone = torch.zeros(1, 16)
    for value, expected in ((-1e30, 0.0), (-200.0, 0.0), (0.0, 0.0), (200.0, 200.0**2), (20.0, 400.0)):
        alone[0, 0] = value
        assert ops.gated(alone, one, one, False, 16)[0, 0].item() == pytest.approx(expected, abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("round_first", [True, False])
def test_norms(round_first: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, w = (torch.randn(5, 70, 48) * 3).to(dtype), torch.randn(48)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w
    assert close(ops.rms_norm(x, w, 1e-5, round_first), expected)


def row(causal: bool) -> Layout:
    """Segments of one token, of a chunk, of one more, and of several blocks; some with a prefix."""
    sequences: list[TokenSequence] = []
    for prompt, completions in ((90, (1, 5, 230, 64)), (1, (63,)), (64, (65, 128)), (0, (17,)), (300, (70,))):
        for tokens in completions:
            ids = (*range(prompt), *range(1000 + len(sequences), 1000 + len(sequences) + tokens))
            sequences.append(TokenSequence(ids, prompt, Span(len(ids) - 1, len(ids))))
    return pack(sequences, share_prompts=causal)


def attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    window: int,
    causal: bool,
    softcap: float = math.inf,
) -> torch.Tensor:
    """Attention by the definition, a segment and a head at a time; fp64 `[T, heads, d]`."""
    out = torch.zeros(q.shape[2], q.shape[1], q.shape[3], dtype=torch.float64)
    for segment in layout.segments:
        own = range(segment.own.start, segment.own.end)
        seen = [*(range(segment.prefix.start, segment.prefix.end) if segment.prefix else ()), *own]
        ages = torch.arange(len(seen) - len(own), len(seen))[:, None] - torch.arange(len(seen))
        hidden = (ages if causal else ages.abs()) >= (window or len(seen))
        hidden |= (ages < 0) & causal
        for head in range(q.shape[1]):
            group = head // (q.shape[1] // k.shape[1])
            scores = q[0, head, own].double() @ k[0, group, seen].double().T * q.shape[3] ** -0.5
            scores = scores if softcap == math.inf else softcap * (scores / softcap).tanh()
            out[own.start : own.stop, head] = (
                scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[0, group, seen].double()
            )
    return out


SHAPES = [
    (12, 6, 64, 0, True),
    (4, 4, 16, 0, False),
    (8, 1, 32, 37, True),
    (6, 3, 10, 100, True),
    (2, 2, 128, 64, True),
    (4, 4, 16, 1, False),
    (4, 4, 16, 33, False),
    (2, 2, 64, 130, False),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "groups", "width", "window", "causal"), SHAPES)
def test_attention(heads: int, groups: int, width: int, window: int, causal: bool, dtype: torch.dtype) -> None:
    layout = row(causal)
    tokens = layout.ids.shape[1]
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, n, width).to(dtype).transpose(1, 2) for n in (heads, groups, groups))
    table = build_segment_table(layout.segments)
    got = ops.attention(q, k, v, None, None, table, width**-0.5, window, causal)
    assert close(got[0], attended(q, k, v, layout, window, causal))
    assert not got[0, layout.tokens :].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "groups", "width", "window", "causal"), SHAPES)
def test_attention_with_bounded_scores(
    heads: int, groups: int, width: int, window: int, causal: bool, dtype: torch.dtype
) -> None:
    layout = row(causal)
    tokens = layout.ids.shape[1]
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, n, width).to(dtype).transpose(1, 2) * 2 for n in (heads, groups, groups))
    table = build_segment_table(layout.segments)
    got = ops.attention(q, k, v, None, None, table, width**-0.5, window, causal, 1.5)
    expected = attended(q, k, v, layout, window, causal, 1.5)
    assert close(got[0], expected)
    without = attended(q, k, v, layout, window, causal)
    assert window == 1 or (expected - without).abs().max() > 0.1  # the bound is felt


@pytest.mark.parametrize("cap", [0.5, 50.0])
def test_bounds_of_one_score(cap: float) -> None:
    scores = torch.cat([torch.linspace(-4, 4, 4000) * cap, torch.tensor([1e-6, -1e-6, 1e30, -1e30, 0.0])])
    for score in scores[::61].tolist() + scores[-5:].tolist():
        # Two keys with the scores `score` and 0: the weight of the first is the sigmoid of the bounded score.
        q, k = torch.full((1, 1, 64, 2), 1.0), torch.zeros(1, 1, 64, 2)
        k[0, 0, 0, 0] = score
        v = torch.zeros(1, 1, 64, 2)
        v[0, 0, 0] = 1.0
        got = ops.attention(q, k, v, None, None, torch.tensor([[0, 2, 0, 0]]), 1.0, 0, False, cap)[0, 0, 0, 0]
        expected = torch.sigmoid(cap * torch.tanh(torch.tensor(score, dtype=torch.float64) / cap))
        assert abs(got.item() - expected.item()) < 1e-6 * max(1.0, cap / 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 20])
def test_attention_turns_queries_and_keys_by_their_positions(width: int, dtype: torch.dtype) -> None:
    layout = row(True)
    tokens = layout.ids.shape[1]
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, n, width).to(dtype).transpose(1, 2) for n in (4, 2, 2))
    angles = torch.rand(1, tokens, width // 2).repeat(1, 1, 2) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def turned(x: torch.Tensor) -> torch.Tensor:
        low, high = x.double().chunk(2, dim=-1)
        return (x.double() * cos.double() + torch.cat([-high, low], dim=-1) * sin.double()).to(dtype)

    got = ops.attention(q, k, v, cos, sin, build_segment_table(layout.segments), width**-0.5, 0, True)
    assert close(got[0], attended(turned(q), turned(k), v, layout, 0, causal=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 64), (768, 16), (16, 768), (768, 384), (2048, 768)])
def test_a_row_is_the_same_at_every_position_of_every_tile(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, w, u = (
        torch.randn(600, inputs).to(dtype),
        torch.randn(outputs, inputs).to(dtype),
        torch.randn(outputs, inputs).to(dtype),
    )
    packed, other, scale = ops.pack(w), ops.pack(u), torch.rand(inputs)

    def all_of(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        added = torch.ones(len(rows), outputs, dtype=dtype)
        ops.linear_add(added, rows, packed, None)
        products = ops.linear(rows, packed, None, outputs), ops.gated(rows, packed, other, False, outputs)
        return (*products, added, ops.rms_norm(rows, scale, 1e-5, True))

    together = all_of(x)
    for count in (*range(1, 35), 63, 64, 65, 127, 190, 257, 300, 511, 599):
        for start in (0, 1, 600 - count):
            for part, whole in zip(all_of(x[start : start + count]), together, strict=True):
                assert torch.equal(part, whole[start : start + count])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_does_not_see_where_a_segment_lies(dtype: torch.dtype) -> None:
    layout = row(True)
    table, tokens = build_segment_table(layout.segments), layout.tokens
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, n, 64).to(dtype).transpose(1, 2) for n in (4, 2, 2))
    expected = ops.attention(q, k, v, None, None, table, 0.125, 0, True)
    for offset in (1, 2, 7, 63, 64, 65, 200):
        before = torch.randn(1, offset, 1, 64).to(dtype).transpose(1, 2)
        q2, k2, v2 = (torch.cat([before.expand(-1, x.shape[1], -1, -1), x], dim=2) for x in (q, k, v))
        moved = torch.where((table == 0) & (torch.arange(4) > 1) & (table[:, 3:] == 0), table, table + offset)
        moved = torch.cat([torch.tensor([[0, offset, 0, 0]]), moved])
        assert torch.equal(ops.attention(q2, k2, v2, None, None, moved, 0.125, 0, True)[:, offset:], expected)


def test_a_poisoned_segment_poisons_itself_only() -> None:
    layout = row(True)
    tokens = layout.ids.shape[1]
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, 2, 32).transpose(1, 2) for _ in "qkv")
    table = build_segment_table(layout.segments)
    expected = ops.attention(q, k, v, None, None, table, 0.2, 0, True)
    sick = layout.segments[2].own  # a completion, whose prompt has others
    for x in (q, k, v):
        x[:, :, sick.start] = math.nan
    got = ops.attention(q, k, v, None, None, table, 0.2, 0, True)
    assert got[0, sick.start : sick.end].isnan().all()
    assert torch.equal(got[0, : sick.start], expected[0, : sick.start])
    assert torch.equal(got[0, sick.end :], expected[0, sick.end :])


@pytest.mark.parametrize(
    "segments",
    [[[0, 70, 0, 0]], [[1, 5, 0, 0]], [[0, 5, 0, 0], [5, 9, 0, 4]], [[0, 5, 0, 0], [6, 9, 0, 0]], [[0, 0, 0, 0]]],
)
def test_segments_that_do_not_lie_in_the_row_are_refused(segments: list[list[int]]) -> None:
    x = torch.randn(1, 2, 64, 8)
    with pytest.raises(RuntimeError, match="segment"):
        ops.attention(x, x, x, None, None, torch.tensor(segments), 1.0, 0, True)


def test_scores_that_are_huge_pick_one_key() -> None:
    x = torch.zeros(1, 1, 64, 8)
    x[..., 0] = torch.arange(64) * 1e9
    v = torch.arange(64.0)[None, None, :, None].expand(1, 1, 64, 8).contiguous()
    got = ops.attention(x, x, v, None, None, torch.tensor([[0, 64, 0, 0]]), 1.0, 0, True)
    assert torch.equal(got[0, :, 0, 0], torch.arange(64.0))


def test_nothing_gives_nothing() -> None:
    packed = ops.pack(torch.randn(8, 4))
    assert ops.linear(torch.empty(0, 4), packed, None, 8).shape == (0, 8)
    assert ops.gated(torch.empty(0, 4), packed, packed, False, 8).shape == (0, 8)
    x = torch.empty(1, 2, 0, 8)
    with pytest.raises(RuntimeError, match="segments"):
        ops.attention(x, x, x, None, None, torch.empty(0, 4, dtype=torch.int64), 1.0, 0, True)


def test_heads_and_rotations_that_do_not_fit_are_refused() -> None:
    x, table = torch.randn(1, 2, 64, 8), torch.tensor([[0, 64, 0, 0]])
    half = torch.randn(1, 64, 4)
    for arguments in (
        (x, x[:, :1], x, None, None),
        (x, x, x, half, half),
        (x, x, x, None, half),
        (x, x, x.bfloat16(), None, None),
    ):
        with pytest.raises(RuntimeError, match=r"head|cos"):
            ops.attention(*arguments, table, 1.0, 0, True)


def test_inputs_that_do_not_fit_are_refused() -> None:
    packed = ops.pack(torch.randn(8, 4))
    with pytest.raises(RuntimeError, match="bias"):
        ops.linear(torch.randn(3, 4), packed, torch.randn(7), 8)
    packed = ops.pack(torch.randn(8, 4))
    for x, outputs in (
        (torch.randn(3, 5), 8),
        (torch.randn(3, 4).bfloat16(), 8),
        (torch.randn(3, 4), 40),
        (torch.randn(3, 4), 300),
    ):
        with pytest.raises(RuntimeError, match=r"do(es)? not fit"):
            ops.linear(x, packed, None, outputs)
    with pytest.raises(RuntimeError, match="odd"):
        ops.pack(torch.randn(8, 5).bfloat16())


def test_kernels_that_do_not_load_are_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = []
    monkeypatch.setattr(build, "_build", lambda _, library: built.append(library.write_bytes(b"no library")))
    build._load.cache_clear()
    assert "could not be built or loaded" in str(build.load_or_explain(torch.float32, CPU))
    assert len(built) == 2
    build._load.cache_clear()


def test_without_onednn_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "oneDNN" in str(build.load_or_explain(torch.float32, CPU))


def test_other_dtypes_and_devices_have_no_kernels() -> None:
    assert build.load_or_explain(torch.float16, CPU) == "Assay has none for float16 on cpu"
    assert build.load_or_explain(torch.bfloat16, torch.device("cuda")) == "Assay has none for bfloat16 on cuda"
