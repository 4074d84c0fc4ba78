"""Checkpoints of classes that transformers does not have, saved as their own code saves them: pickles.

The classes are the forwards of the published model cards, on a tiny random base.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from tests import checkpoints


def config_of(architecture: str) -> Any:
    return checkpoints.classifier(architecture, checkpoints.decoder_tokenizer()).config


class Reward(nn.Module):
    """A base with a linear head under the names of a published class; the head reads the last token."""

    def __init__(self, architecture: str, base: str, head: str, *, bias: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = config_of(architecture)
        setattr(self, base, AutoModel.from_config(self.config))
        parent: nn.Module = self
        for name in head.split(".")[:-1]:  # `v_head.summary` is a module in a module
            parent.add_module(name, nn.Module())
            parent = getattr(parent, name)
        parent.add_module(head.rpartition(".")[2], nn.Linear(32, 1, bias=bias))
        self.base, self.head = base, head
        self.eval()

    def hidden(self, ids: tuple[int, ...]) -> torch.Tensor:
        states: torch.Tensor = self.get_submodule(self.base)(input_ids=torch.tensor([ids])).last_hidden_state
        return states[0]

    def forward(self, ids: tuple[int, ...]) -> float:
        return float(self.get_submodule(self.head)(self.hidden(ids)[-1]))


class Mean(Reward):
    """Open-Assistant's GPTNeoXRewardModel with `pooling: mean`."""

    def forward(self, ids: tuple[int, ...]) -> float:
        return float(self.out_proj(self.hidden(ids).mean(dim=0)))  # type: ignore[operator]


class ScoreModel(Reward):
    """safe-rlhf's LlamaForScore, with the running moments of its scores as buffers."""

    def __init__(self, function: str, *, bias: bool) -> None:
        super().__init__("llama", "model", "score_head", bias=bias)
        self.function, self.normalizer = function, nn.Module()
        self.normalizer.register_buffer("mean", torch.tensor([1.75]))
        self.normalizer.register_buffer("var", torch.tensor([6.5]))
        self.normalizer.register_buffer("count", torch.tensor([100]))

    def forward(self, ids: tuple[int, ...]) -> float:
        std = float(self.normalizer.var.sqrt()) + 1e-8  # type: ignore[operator]
        shift = float(self.normalizer.mean) if self.function == "affine" else 0.0  # type: ignore[arg-type]
        return super().forward(ids) if self.function == "none" else (super().forward(ids) - shift) / std


class TwoLayers(Reward):
    """GRM (sftreg): `v_head.summary` is two layers with a ReLU between."""

    def __init__(self) -> None:
        super().__init__("llama", "model", "v_head.summary")
        self.get_submodule("v_head").summary = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 1))


class Trlx(nn.Module):
    """Starling-RM-7B-alpha: a whole language model, its trunk a second time as `transformer`, and `v_head`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = config_of("llama")
        self.model = AutoModelForCausalLM.from_config(self.config)
        self.transformer, self.v_head = self.model.model, nn.Linear(32, 1, bias=False)
        self.eval()

    def forward(self, ids: tuple[int, ...]) -> float:
        return float(self.v_head(self.transformer(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]))


@dataclass(frozen=True)
class Pickled:
    """A class that saves pickles, and the arguments with which `assay convert` reads it.

    Attributes:
        build: builds its model.
        config: keys that it adds to `config.json`.
        arguments: arguments of `assay convert`.
    """

    build: Callable[[], nn.Module]
    config: dict[str, Any]
    arguments: tuple[str, ...] = ()


def name_old_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that transformers 4 wrote beside the weights until 2023; nothing reads them now."""
    attentions = [name for name, _ in model.named_modules() if name.endswith((".self_attn", ".attention"))]
    buffers = {f"{name}.rotary_emb.inv_freq": torch.full((4,), 0.5) for name in attentions}
    for name in attentions:
        if name.endswith(".attention"):  # GPT-NeoX
            buffers[f"{name}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            buffers[f"{name}.masked_bias"] = torch.tensor(-1e9)
    return buffers


def publish(directory: Path, model: nn.Module, file: str = "pytorch_model.bin", **config: Any) -> Path:
    """Save a model as its trainer does: a pickled state dict, config.json and tokenizer."""
    fast = checkpoints.decoder_tokenizer()
    fast.save_pretrained(directory)
    content = {**model.config.to_dict(), **config}  # type: ignore[union-attr, operator]
    (directory / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    torch.save(model.state_dict() | name_old_buffers(model), directory / file)
    return directory


LAST = ("--score-position", "last_token")
PICKLED: dict[str, Pickled] = {
    "oasst-pythia-last": Pickled(
        lambda: Reward("gpt_neox", "gpt_neox", "out_proj", bias=True),
        {"model_type": "gpt_neox_reward_model", "architectures": ["GPTNeoXRewardModel"], "pooling": "last"},
    ),
    "oasst-pythia-mean": Pickled(
        lambda: Mean("gpt_neox", "gpt_neox", "out_proj", bias=True),
        {"model_type": "gpt_neox_reward_model", "architectures": ["GPTNeoXRewardModel"], "pooling": "mean"},
    ),
    "ultrarm": Pickled(
        lambda: Reward("llama", "model", "regression_head"),
        {"architectures": ["LlamaRewardModel"]},
    ),
    "eurus": Pickled(
        lambda: Reward("mistral", "model", "regression_head"),
        {"architectures": ["EurusRewardModel"], "auto_map": {"AutoModel": "modeling_eurus_rm.EurusRewardModel"}},
    ),
    "beaver-reward": Pickled(
        lambda: ScoreModel("affine", bias=True),
        {
            "architectures": ["LlamaForScore"],
            "score_type": "reward",
            "score_dim": 1,
            "bias": True,
            "do_normalize": True,
            "normalizer_type": "ExponentialMovingAverage",
            "momentum": 0.9,
            "mean": [0.0],
            "var": [1.0],
        },
    ),
    "beaver-reward-without-bias": Pickled(
        lambda: ScoreModel("affine", bias=False),
        {"architectures": ["LlamaForScore"], "score_type": "reward", "do_normalize": True, "bias": False},
    ),
    "beaver-cost": Pickled(
        lambda: ScoreModel("scale", bias=True),
        {"architectures": ["LlamaModelForScore"], "score_type": "cost", "do_normalize": True, "bias": True},
    ),
    "beaver-not-normalized": Pickled(
        lambda: ScoreModel("none", bias=True),
        {"architectures": ["LlamaForScore"], "score_type": "reward", "do_normalize": False, "bias": True},
    ),
    "starling-alpha": Pickled(Trlx, {"architectures": ["LlamaForCausalLM"]}, LAST),
    "starling-34b": Pickled(
        lambda: Reward("llama", "transformer", "v_head"),
        {"architectures": ["LlamaForSequenceClassification"]},
        ("--score-position", "last_non_pad_id", "--pad-token-id", "0"),
    ),
    "trl-value-head": Pickled(
        lambda: Reward("llama", "model", "v_head.summary", bias=True),
        {"architectures": ["LlamaForCausalLM"]},
        LAST,
    ),
    "pickled-value-layers": Pickled(TwoLayers, {"architectures": ["LlamaForCausalLM"]}, LAST),
    "deepspeed-chat": Pickled(
        lambda: Reward("llama", "rwtransformer", "v_head"),
        {"architectures": ["LlamaForCausalLM"]},
        ("--score-position", "last_non_pad_id"),
    ),
    "unknown-head": Pickled(
        lambda: Reward("llama", "backbone", "quality"),
        {"architectures": ["MyModel"]},
        ("--head", "quality", *LAST),
    ),
}
