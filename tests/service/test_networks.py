"""Heads with a gating network: each published layout against a short reference, and what is refused."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from assay_client import RewardClient
from assay_client._answers import encode_outcome
from assay_client._parquet import write_parquet
from assay_client.in_process import AppTransport
from assay_client.results import RenderedItem
from assay_service import create_app
from assay_service.cli import app
from assay_service.engine.cache import compute_key
from assay_service.errors import ContentError, StartError
from assay_service.inspection import inspect
from assay_service.loader import load
from assay_service.registry import Registry
from assay_service.scoring.gates import find_gate
from assay_service.scoring.item import Item, Message
from assay_service.settings import Settings, parse
from tests import checkpoints

FAST = checkpoints.decoder_tokenizer(checkpoints.CHATML)
GATE = "<|im_end|>\n<|im_start|>assistant\n"
HIDDEN = 32
TEXTS = ("Mix flour, water, salt and yeast, and wait.", "No.", "I am sorry, I cannot help with that.")
PROMPTS = ("How do I bake bread?", "Who are you?")
ITEMS = [Item.of(prompt, text) for prompt in PROMPTS for text in TEXTS]

Read = Callable[[torch.Tensor, list[int]], list[float]]


def linear(rows: int, columns: int, *, bias: bool = True, std: float = 0.4) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    return layer


def find_token_for_gating(ids: list[int]) -> int:
    """As in RLHFlow's and QRM's code, with the pattern of this tokenizer."""
    pattern = FAST.encode(GATE, add_special_tokens=False)
    for j in range(len(ids) - len(pattern), -1, -1):
        if ids[j : j + len(pattern)] == pattern:
            return j
    raise ValueError("Token pattern not found in the list.")


class Gating(nn.Module):
    """`GatingNetwork` of ArmoRM, or with batch norms that of QRM."""

    def __init__(self, outputs: int, *, norm: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones(1) * 1.3)
        layers: list[nn.Module] = []
        width = HIDDEN
        for number in range(3):
            layers.append(linear(16, width, bias=not norm))
            width = 16
            if norm:
                layers += [nn.ReLU(), nn.BatchNorm1d(16)]
                if dropout and number < 2:
                    layers.append(nn.Dropout(0.2))
        self.layers = nn.ModuleList([*layers, linear(outputs, width)])
        self.norm = norm
        for layer in layers:
            if isinstance(layer, nn.BatchNorm1d):
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
                nn.init.normal_(layer.get_buffer("running_mean"))
                nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 2)

    def forward(self, x: torch.Tensor, temperature: float) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if not self.norm and i < len(self.layers) - 1:
                x = functional.relu(x)
        return functional.softmax(x / temperature, dim=1) * self.logit_scale[0]


class Armo(nn.Module):
    """The head of `LlamaForRewardModelWithGating`, by `modeling_custom.py` of ArmoRM-Llama3-8B-v0.1."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"num_objectives": 5, "gating_temperature": 2}
        self.regression_layer = linear(5, HIDDEN, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(5) + torch.randn(5, 5) * 0.3)
        self.gating = Gating(5)

    def read(self, states: torch.Tensor, ids: list[int]) -> dict[str, tuple[float, float | None]]:
        rewards = self.regression_layer(states[None, -1])
        gating_output = self.gating(states[None, find_token_for_gating(ids)], 2)
        score = torch.sum(gating_output * (rewards @ self.reward_transform_matrix), dim=1)
        return {"score": (float(score), None), "third": (float(rewards[0, 2]), None)}


class Qrm(nn.Module):
    """The head of `LlamaForRewardModelWithGating31`, by RewardBench's `models/qrm.py`; for Gemma with a dropout."""

    def __init__(self, *, gemma: bool = False) -> None:
        super().__init__()
        self.config = {"num_objectives": 5, "num_quantiles": 7}
        self.regression_layer = linear(5 * 7, HIDDEN, bias=False)
        self.gating = Gating(5, norm=True, dropout=gemma)
        if not gemma:
            self.reward_transform_matrix = nn.Parameter(torch.eye(5) + torch.randn(5, 5) * 0.3)
        self.temperature = 1 if gemma else 10

    def read(self, states: torch.Tensor, ids: list[int]) -> dict[str, tuple[float, float | None]]:
        matrix = getattr(self, "reward_transform_matrix", torch.eye(5))
        rewards = self.regression_layer(states[None, -1]).reshape(-1, 5, 7)
        gating_output = self.gating(states[None, find_token_for_gating(ids)], self.temperature)
        adjusted = torch.matmul(torch.transpose(rewards, 1, 2), matrix)
        quantiles = (gating_output.unsqueeze(-1) * torch.transpose(adjusted, 1, 2)).sum(1)
        expectation = rewards.mean(dim=2) @ matrix
        score = torch.sum(gating_output * expectation, dim=1)
        third = (float(expectation[0, 2]), float(adjusted[0, :, 2].std(correction=0)))
        return {"score": (float(score), float(quantiles.std(correction=0))), "third": third}


class Urm(nn.Module):
    """The head of `LlamaForSequenceClassificationWithNormal_Weights`, by SGLang's `models/llama_reward.py`."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.score = linear(10, HIDDEN, bias=False, std=0.1)
        layers = (linear(16, HIDDEN), nn.SELU(), linear(16, 16), nn.SELU(), linear(5, 16))
        self.weights = nn.ModuleDict({"fc": nn.Sequential(*layers)})

    def read(self, states: torch.Tensor, ids: list[int]) -> dict[str, tuple[float, float | None]]:
        logits, weights = self.score(states[-1]), self.weights["fc"](states[-1])
        means, stds = logits.view(5, 2)[:, 0], logits.view(5, 2)[:, 1].exp()
        std = torch.distributions.Normal(0, 1).stddev * torch.linalg.vector_norm(weights * stds)
        third = (float(means[2]), float(stds[2]))
        return {"score": (float((means * weights).sum()), float(std)), "third": third}


class Ldl(nn.Module):
    """The head of `LDLRewardModel27B`, by RewardBench's `models/ldlreward.py`."""

    def __init__(self, *, softmax: bool = False) -> None:
        super().__init__()
        self.config = {"num_objectives": 50, "softmax": softmax, "temperature": 0.5}
        leaky, rest = nn.LeakyReLU(), nn.Dropout(0.0)
        layers = (linear(16, HIDDEN), leaky, linear(16, 16), leaky, linear(50, 16))
        gate = (linear(16, HIDDEN), leaky, rest, linear(16, 16), leaky, rest, linear(5, 16))
        self.regression_layer = nn.ModuleDict({"network": nn.Sequential(*layers)})
        self.gating_layer = nn.ModuleDict({"network": nn.Sequential(*gate)})

    def read(self, states: torch.Tensor, ids: list[int]) -> dict[str, tuple[float, float | None]]:
        rewards = functional.softmax(self.regression_layer["network"](states[None, -1]).view(1, -1, 10), dim=-1)
        weights = self.gating_layer["network"](states[None, -1])
        if self.config["softmax"]:
            weights = functional.softmax(weights / 0.5, dim=1)
        total = torch.bmm(weights.unsqueeze(1), rewards).squeeze(1)
        score = (total * torch.linspace(0, 1, 10)).sum(-1)
        third = torch.distributions.Categorical(probs=rewards[0, 2])
        values = torch.linspace(0, 1, 10)
        mean = (third.probs * values).sum()
        std = ((third.probs * values**2).sum() - mean**2).sqrt()
        spread = ((total * values**2).sum() - score**2).sqrt() if self.config["softmax"] else None
        return {"score": (float(score), None if spread is None else float(spread)), "third": (float(mean), float(std))}


HEADS: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "ArmoRM": ("llama", "LlamaForRewardModelWithGating", Armo),
    "QRM": ("llama", "LlamaForRewardModelWithGating31", Qrm),
    "QRM-Gemma": ("gemma2", "Gemma2ForQuantileSequenceClassification", lambda: Qrm(gemma=True)),
    "URM": ("llama", "LlamaForSequenceClassificationWithNormal_Weights", Urm),
    "LDL": ("gemma2", "LDLRewardModel27B", Ldl),
    "LDL with softmax": ("gemma2", "LDLRewardModel27B", lambda: Ldl(softmax=True)),
}


def save(root: Path, name: str) -> tuple[Any, Any]:
    """Write a checkpoint with the tensor names and the keys of the original, and return its base and its head."""
    architecture, class_name, build = HEADS[name]
    model = checkpoints.classifier(architecture, FAST)
    checkpoints.save(root / "rm", model, FAST)
    torch.manual_seed(1)
    head = build().eval()
    path, config = root / "rm/model.safetensors", root / "rm/config.json"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != "score.weight"}
    save_file(tensors | head.state_dict(), path)
    keys = {"architectures": [class_name], "auto_map": {"AutoModel": f"modeling_custom.{class_name}"}, **head.config}
    config.write_text(json.dumps({**json.loads(config.read_text()), **keys}))
    return model.model.eval(), head


def settings(root: Path, **signals: dict[str, Any]) -> Settings:
    common = {"base": "rm", "kind": "preference", "eos": "template", "unfinished": "error", "code": "ignore"}
    common |= {"score_position": "last_token"}
    raw = {"signals": {name: {**common, **keys} for name, keys in signals.items()}, "default": next(iter(signals))}
    parsed = parse(raw, root)
    assert parsed.settings is not None, parsed.problems
    return parsed.settings


def gate_of(name: str) -> dict[str, Any]:
    return {"head": {"gate": GATE}} if name in ("ArmoRM", "QRM", "QRM-Gemma") else {}


def load_both(root: Path, name: str) -> Registry:
    """The published score and one objective, as two signals."""
    return load(settings(root, score=gate_of(name), third={**gate_of(name), "output": 2}))


def read(registry: Registry, name: str, items: list[Item]) -> list[tuple[float, float | None]]:
    signal = registry.signals[name]
    with torch.inference_mode():
        (rows,) = signal.model.read([signal.renderer.render(item).sequence for item in items], (name,))
    readings = [signal.reading.read(numbers) for numbers in rows]
    return [(reading.logit, reading.std) for reading in readings]


@pytest.mark.parametrize("name", HEADS)
def test_a_published_head_gives_what_its_own_code_gives(name: str, tmp_path: Path) -> None:
    base, head = save(tmp_path, name)
    base.set_attn_implementation("eager")
    registry = load_both(tmp_path, name)
    ids = [list(registry.signals["score"].renderer.render(item).sequence.ids) for item in ITEMS]
    with torch.inference_mode():
        expected = [head.read(base(input_ids=torch.tensor([i])).last_hidden_state[0], i) for i in ids]
    for signal in ("score", "third"):
        for got, right in zip(read(registry, signal, ITEMS), expected, strict=True):
            assert got[0] == pytest.approx(right[signal][0], rel=1e-5, abs=1e-5)
            assert (got[1] is None) == (right[signal][1] is None)
            assert got[1] is None or got[1] == pytest.approx(right[signal][1], rel=1e-5, abs=1e-5)
    logits = {round(logit, 3) for logit, _ in read(registry, "score", ITEMS)}
    assert len(logits) > len(ITEMS) // 2  # a head that gave a constant would agree with nothing else
    assert registry.invariant == {"score": True, "third": True}


GATED = ("ArmoRM", "QRM", "QRM-Gemma")


@pytest.fixture(scope="module", params=["ArmoRM", "QRM", "URM", "LDL with softmax"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("networks")
    save(root, request.param)
    return load_both(root, request.param)


POOL = [*ITEMS, Item.of(PROMPTS[0], " ".join(TEXTS * 4)), Item.of(" ".join(PROMPTS * 9), TEXTS[1])]


@settings_of_hypothesis(max_examples=25, deadline=None)
@given(chosen=st.lists(st.sampled_from(range(len(POOL))), min_size=1, max_size=40))
def test_an_item_has_the_same_bits_alone_in_any_batch_and_beside_completions_of_its_prompt(
    registry: Registry, chosen: list[int]
) -> None:
    batch = [POOL[index] for index in chosen]
    for signal in ("score", "third"):
        alone = {item: read(registry, signal, [item])[0] for item in {*batch}}
        assert read(registry, signal, batch) == [alone[item] for item in batch]


def test_a_gate_reads_the_same_token_of_the_prompt_for_all_its_completions(tmp_path: Path) -> None:
    save(tmp_path, "ArmoRM")
    registry = load_both(tmp_path, "ArmoRM")
    renderer = registry.signals["score"].renderer
    places: dict[str, set[int | None]] = {prompt: set() for prompt in PROMPTS}
    for prompt, text in ((p, t) for p in PROMPTS for t in TEXTS):
        sequence = renderer.render(Item.of(prompt, text)).sequence
        places[prompt].add(sequence.gate)
        assert sequence.gate == find_token_for_gating(list(sequence.ids))
        assert sequence.gate is not None
        assert FAST.convert_ids_to_tokens(sequence.ids[sequence.gate]) == "<|im_end|>"
        assert sequence.gate < sequence.boundary
    assert [len(gates) for gates in places.values()] == [1, 1]
    assert places[PROMPTS[0]] != places[PROMPTS[1]]


def test_the_gate_is_that_of_the_last_turn_and_part_of_the_cache_key(tmp_path: Path) -> None:
    save(tmp_path, "ArmoRM")
    registry = load_both(tmp_path, "ArmoRM")
    pairs = [("user", "Hi"), ("assistant", "Hello."), ("user", "Who are you?"), ("assistant", "Me.")]
    turns = Item(tuple(Message(role, text) for role, text in pairs))
    sequence = registry.signals["score"].renderer.render(turns).sequence
    assert sequence.gate == find_token_for_gating(list(sequence.ids))
    assert sequence.gate is not None
    assert sequence.gate > sequence.ids.index(sequence.ids[sequence.gate])
    elsewhere = replace(sequence, gate=1)
    assert compute_key("x", elsewhere) != compute_key("x", sequence)
    assert compute_key("x", replace(sequence, gate=None)) != compute_key("x", sequence)
    with torch.inference_mode():
        model = registry.signals["score"].model
        here, there = model.read([sequence, elsewhere], ("score",))[0]
    assert here != there


@given(
    prompt=st.lists(st.integers(0, 2), max_size=12),
    completion=st.lists(st.integers(0, 2), max_size=8),
    pattern=st.lists(st.integers(0, 2), min_size=1, max_size=3),
)
def test_the_gate_is_the_last_place_of_the_pattern_that_begins_in_the_prompt(
    prompt: list[int], completion: list[int], pattern: list[int]
) -> None:
    ids, text = [*prompt, *completion], "".join(map(str, [*prompt, *completion]))
    last = text.rfind("".join(map(str, pattern)), 0, len(prompt) + len(pattern))
    if last < 0:
        with pytest.raises(ContentError, match=r"head\.gate"):
            find_gate(ids, pattern, len(prompt))
    else:
        assert find_gate(ids, pattern, len(prompt)) == last
    assert find_gate(ids, None, len(prompt)) is None


def test_signals_of_one_gated_head_cost_one_forward_pass_and_answer_with_std(tmp_path: Path) -> None:
    base, head = save(tmp_path, "QRM")
    third = {**gate_of("QRM"), "output": 2}
    with TestClient(create_app(settings(tmp_path, score=gate_of("QRM"), third=third))) as client:
        items = [{"prompt": PROMPTS[0], "completion": text} for text in TEXTS[:2]]
        answer = client.post("/v1/score", json={"items": items, "weights": {"score": 1.0, "third": 0.5}}).json()
        rendered = client.post("/v1/render", json={"items": items, "model": "score"}).json()["data"]
        lines = client.get("/metrics").text.splitlines()
        info = client.get("/info").json()["signals"]
        ids = [row["signals"]["score"]["ids"] for row in rendered]
    with torch.inference_mode():
        base.set_attn_implementation("eager")
        expected = [head.read(base(input_ids=torch.tensor([i])).last_hidden_state[0], i) for i in ids]
    passes = [line for line in lines if line.startswith("assay_forward_seconds_count")]
    assert [line.partition("}")[0] for line in passes] == ['assay_forward_seconds_count{signal="score+third"']
    for row, right, tokens in zip(answer["data"], expected, (15, 5), strict=True):
        (score, spread), (objective, deviation) = right["score"], right["third"]
        assert row == {
            "index": row["index"],
            "score": pytest.approx(score + 0.5 * objective, abs=1e-5),
            "signals": {"score": value(score, spread, tokens), "third": value(objective, deviation, tokens)},
        }
    assert [row["signals"]["score"]["gate"] for row in rendered] == [9, 9]
    assert info["score"]["gate"] == GATE


def value(logit: float, std: float | None, tokens: int) -> dict[str, Any]:
    return {
        "logit": pytest.approx(logit, abs=1e-5),
        "std": pytest.approx(std, abs=1e-5),
        "prompt_tokens": 16,
        "completion_tokens": tokens,
        "truncated_tokens": 0,
        "dropped_tokens": 0,
        "control_tokens_as_text": 0,
    }


def test_the_client_has_std_and_gate_and_writes_the_rows_as_the_service_answered(tmp_path: Path) -> None:
    save(tmp_path, "QRM")
    first, second = (create_app(settings(tmp_path, score=gate_of("QRM"))) for _ in range(2))
    items = [{"prompt": PROMPTS[0], "completion": text} for text in TEXTS]
    with TestClient(first) as http:
        raw = http.post("/v1/score", json={"items": items}).json()["data"]
    with RewardClient("http://test", transport=AppTransport(second)) as client:
        rows = client.score(items).data
        places = [row.signals["score"].gate for row in client.render(items).data if isinstance(row, RenderedItem)]
    assert [encode_outcome(row) for row in rows] == raw
    assert places == [9, 9, 9]
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in raw))
    write_parquet(lines, table)
    written = pyarrow.parquet.read_table(table).to_pylist()
    assert [row["signals"]["score"]["std"] for row in written] == [row["signals"]["score"]["std"] for row in raw]


def test_an_item_whose_gate_was_cut_off_is_refused_and_its_neighbor_is_not(tmp_path: Path) -> None:
    save(tmp_path, "ArmoRM")
    with TestClient(create_app(settings(tmp_path, score={**gate_of("ArmoRM"), "max_length": 28}))) as client:
        items = [{"prompt": PROMPTS[0], "completion": text} for text in (TEXTS[0], TEXTS[0] + " Then bake it.")]
        body = {"items": items, "truncation": "prompt_left"}
        scored, refused = client.post("/v1/score", json=body).json()["data"]
    assert scored["signals"]["score"]["truncated_tokens"] > 0
    assert refused["error"]["code"] == "template_error"
    assert "the text of `head.gate` does not occur in the ids where the prompt" in refused["error"]["message"]


def refuse(root: Path, message: str, **keys: Any) -> None:
    with pytest.raises(StartError, match=message):
        load(settings(root, s=keys))


def change(root: Path, tensors: dict[str, Any] | None = None, **config: Any) -> None:
    """Replace tensors (None removes one) and keys of `config.json`."""
    path, keys = root / "rm/model.safetensors", root / "rm/config.json"
    changed = load_file(path) | (tensors or {})
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    keys.write_text(json.dumps(json.loads(keys.read_text()) | config))


@pytest.mark.parametrize("name", ["ArmoRM", "QRM", "URM", "LDL"])
def test_a_head_with_a_tensor_that_is_missing_unknown_misshapen_zero_or_not_finite_is_refused_by_its_name(
    name: str, tmp_path: Path
) -> None:
    _, head = save(tmp_path, name)
    gate = gate_of(name)
    names = {n: t for n, t in head.state_dict().items() if "num_batches" not in n}
    for tensor, values in names.items():
        change(tmp_path, {tensor: None})
        refuse(tmp_path, rf"tensor {tensor} is missing", **gate)
        for shape in ((), (3, 3, 3), (*values.shape[:-1], values.shape[-1] + 1)):
            change(tmp_path, {tensor: torch.ones(shape)})
            refuse(tmp_path, rf"{tensor} has shape", **gate)
        change(tmp_path, {tensor: torch.full_like(values, float("nan"))})
        refuse(tmp_path, rf"{tensor}: holds values that are not finite", **gate)
        if not tensor.endswith(("bias", "running_mean", "running_var")):
            change(tmp_path, {tensor: torch.zeros_like(values)})
            refuse(tmp_path, rf"{tensor}: is all zero", **gate)
        change(tmp_path, {tensor: values})
    first = next(iter(names))
    for unknown in (f"{first.split('.')[0]}.extra.weight", "v_head.weight"):
        change(tmp_path, {unknown: torch.ones(1, HIDDEN)})
        refuse(tmp_path, rf"tensor {unknown} has no place", **gate)
        change(tmp_path, {unknown: None})
    load(settings(tmp_path, s=gate))


@pytest.mark.parametrize("name", GATED)
def test_a_gate_that_reads_the_prompt_must_be_declared_and_only_there(name: str, tmp_path: Path) -> None:
    save(tmp_path, name)
    refuse(tmp_path, r"head: declare it, as `head: \{gate: TEXT\}`: gating\.layers\.0\.weight .*<\|eot_id\|>")
    refuse(tmp_path, r"output: 5 is not an objective of this head; declare one of 0 to 4", **gate_of(name), output=5)
    refuse(tmp_path, r"output: a difference is only for linear heads", **gate_of(name), output=[0, 1])
    steps = {"score_position": "steps", "steps": {"delimiter": "\n", "token": "q"}, "aggregate": "min"}
    refuse(tmp_path, r"score_position: steps does not work with a head that has a gating", **gate_of(name), **steps)


def test_the_key_gate_without_such_a_gate_is_refused(tmp_path: Path) -> None:
    for name in ("URM", "LDL"):
        save(tmp_path / name, name)
        refuse(tmp_path / name, "engine: vllm serves linear heads only", engine="vllm")
        refuse(tmp_path / name, r"head\.gate: the checkpoint has no gate that reads the prompt", head={"gate": GATE})
    checkpoints.save(tmp_path / "rm", checkpoints.classifier("llama", FAST), FAST)
    refuse(tmp_path, r"head\.gate: the checkpoint has no gate that reads the prompt", head={"gate": GATE})
    for wrong in ({}, {"gate": GATE, "tokens": ["q"]}, {"gate": ""}):
        assert "head" in " ".join(parse({"signals": {"s": {"base": "rm", "head": wrong}}}, tmp_path).problems)


def test_a_gate_text_that_the_template_does_not_print_is_refused_at_start(tmp_path: Path) -> None:
    save(tmp_path, "ArmoRM")
    message = r"template: cannot render .* `head\.gate` does not occur"
    refuse(tmp_path, message, head={"gate": "<|im_start|>model\n"})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ArmoRM", {"gating_temperature": 0}, "gating_temperature must be a number above 0, not 0"),
        ("ArmoRM", {"gating_temperature": "10"}, "gating_temperature must be a number above 0"),
        ("ArmoRM", {"gating_n_hidden": 4}, r"tensor gating\.layers\.4\.weight is missing"),
        ("ArmoRM", {"gating_n_hidden": True}, "gating_n_hidden must be a whole number"),
        ("ArmoRM", {"num_objectives": 19}, "num_objectives is 19, but .* has the shape of 5"),
        ("QRM", {"num_quantiles": 5}, "num_quantiles is 5, but .* has the shape of 7"),
        ("LDL", {"softmax": "yes"}, "softmax must be true or false"),
        ("LDL with softmax", {"temperature": -1}, "temperature must be a number above 0"),
    ],
)
def test_keys_of_the_configuration_that_do_not_fit_are_refused(
    name: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(tmp_path, name)
    change(tmp_path, **config)
    refuse(tmp_path, message, **gate_of(name))


def test_an_unknown_temperature_is_not_guessed(tmp_path: Path) -> None:
    """ArmoRM's code has 10 where `config.json` has none; of other architectures the default is not known."""
    save(tmp_path, "QRM")
    path = tmp_path / "rm/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mistral"}))
    refuse(tmp_path, "config.json: has no gating_temperature, which changes every score", **gate_of("QRM"))


def test_inspect_says_what_a_gated_head_is_and_that_its_gate_must_be_declared(tmp_path: Path) -> None:
    save(tmp_path, "QRM")
    report = inspect(tmp_path / "rm", {"code": "ignore", "kind": "preference", "eos": "template"})
    assert "5 objectives with quantiles each (regression_layer), weighed by a gate that reads the prompt" in report.text
    assert "    head:\n" in report.text
    assert "{gate: TEXT}: what the template prints between prompt and completion" in report.text
    assert report.problems == ()
    declared = {"code": "ignore", "kind": "preference", "eos": "template", "unfinished": "error", **gate_of("QRM")}
    served = inspect(tmp_path / "rm", {**declared, "score_position": "last_token"})
    parsed = parse(yaml.safe_load(served.text), tmp_path)
    assert parsed.settings is not None
    assert load(parsed.settings).invariant == {"rm": True}


def test_the_fingerprint_names_the_gate_and_the_objective(tmp_path: Path) -> None:
    save(tmp_path, "ArmoRM")
    shorter = {"head": {"gate": "<|im_start|>assistant\n"}}
    registry = load(settings(tmp_path, a=gate_of("ArmoRM"), b=shorter, c={**gate_of("ArmoRM"), "output": 2}))
    assert len({registry.fingerprint(registry.blend(name, None)) for name in "abc"}) == 3
    assert len({registry.signals[name].provenance.head_sha256 for name in "ac"}) == 2
    assert read(registry, "a", ITEMS) != read(registry, "b", ITEMS)  # the gates read different tokens


def test_bf16_bases_keep_their_heads_in_fp32(tmp_path: Path) -> None:
    """As ArmoRM stores them; its 19 weights in bf16 would have three digits."""
    save(tmp_path, "ArmoRM")
    registry = load(settings(tmp_path, score={**gate_of("ArmoRM"), "dtype": "bfloat16"}))
    assert registry.invariant == {"score": True}
    exact = load(settings(tmp_path, score=gate_of("ArmoRM")))
    coarse, fine = read(registry, "score", ITEMS), read(exact, "score", ITEMS)
    for (one, _), (other, _) in zip(coarse, fine, strict=True):
        assert one != other
        assert one == pytest.approx(other, abs=0.2)
    # A product in bf16 would have eight significant bits.
    assert any(torch.tensor(one, dtype=torch.bfloat16).item() != one for one, _ in coarse)


def test_ldl_with_its_head_in_two_pickles_is_converted(tmp_path: Path) -> None:
    """As `save_pretrained` of its class writes them: the bare base, and two state dicts."""
    base, head = save(tmp_path, "LDL")
    source, out = tmp_path / "rm", tmp_path / "out"
    weights = load_file(source / "model.safetensors")
    bare = {n.removeprefix("model."): t for n, t in weights.items() if n.startswith("model.")}
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    for part in ("regression_layer", "gating_layer"):
        torch.save(getattr(head, part).state_dict(), source / f"{part}.pt")
    declared = ["--kind", "preference", "--eos", "template", "--unfinished", "error"]
    result = CliRunner().invoke(app, ["convert", str(source), str(out), *declared])
    assert result.exit_code == 0, result.output
    parsed = parse(yaml.safe_load(result.stdout), tmp_path).settings
    assert parsed is not None
    registry = load(parsed)
    (name,) = registry.signals
    base.set_attn_implementation("eager")
    ids = [list(registry.signals[name].renderer.render(item).sequence.ids) for item in ITEMS]
    with torch.inference_mode():
        expected = [head.read(base(input_ids=torch.tensor([i])).last_hidden_state[0], i)["score"] for i in ids]
    for (score, std), (right, _) in zip(read(registry, name, ITEMS), expected, strict=True):
        assert std is None
        assert score == pytest.approx(right, abs=1e-5)


def test_ldl_that_is_not_whole_is_not_converted(tmp_path: Path) -> None:
    _, head = save(tmp_path, "LDL")
    source = tmp_path / "rm"
    weights = load_file(source / "model.safetensors")
    save_file({n: t for n, t in weights.items() if n.startswith("model.")}, source / "model.safetensors")
    regression = head.regression_layer.state_dict()
    torch.save(regression, source / "regression_layer.pt")
    refuse(
        tmp_path,
        r"the head is in pickles \(regression_layer\.pt\), which are not read: convert it by `assay convert .*rm OUT`",
    )

    def refused(message: str, *more: str) -> None:
        result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out"), *more])
        assert result.exit_code == 2
        assert re.search(message, " ".join(result.output.split())), result.output
        assert not (tmp_path / "out").exists()

    refused(r"gating_layer\.pt: no such file")
    torch.save({"network.0.weight": torch.ones(3, 3)}, source / "gating_layer.pt")
    refused(r"tensor gating_layer\.network\.0\.bias is missing")
    torch.save(head.gating_layer.state_dict(), source / "gating_layer.pt")
    refused(r"remove --head", "--head", "score")
    torch.save({**regression, "network.4.weight": torch.ones(49, 16)}, source / "regression_layer.pt")
    refused(r"regression_layer\.network\.4\.weight has 49 rows")
