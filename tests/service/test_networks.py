"""Heads with a gating network: each published layout against a short reference, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from assay_service.loader import load
from assay_service.registry import Registry
from assay_service.scoring.item import Item
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
            assert got[0] == pytest.approx(right[signal][0], abs=1e-5)
            assert (got[1] is None) == (right[signal][1] is None)
            assert got[1] is None or got[1] == pytest.approx(right[signal][1], abs=1e-5)
    logits = {round(logit, 3) for logit, _ in read(registry, "score", ITEMS)}
    assert len(logits) > len(ITEMS) // 2  # a head that gave a constant would agree with nothing else
    assert registry.invariant == {"score": True, "third": True}
