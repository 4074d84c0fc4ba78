"""Tiny data, configurations and models to train on: files in the sources' formats, random weights, real tokenizers."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig
from torch import nn

from assay_service.scoring.files import list_weight_files
from assay_service.scoring.hashing import hash_files
from assay_service.scoring.head import Head
from assay_service.scoring.item import Item, Message
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.manifest import ScorePosition
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_training.config.model import OptimizerConfig
from assay_training.data.examples import Example
from assay_training.records.record import Judged, Labelled, Pair, Ranking
from tests import checkpoints

Pairs = tuple[tuple[int, int], ...]

HH = {"name": "hh_rlhf", "format": "hh"}
FEEDBACKQA = {"name": "feedbackqa", "format": "feedbackqa"}
DIASAFETY = {"name": "diasafety", "format": "diasafety"}


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A gzipped JSONL file; a string is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return path


def dialogue(*turns: str) -> str:
    """The HH form of turns that alternate between human and assistant."""
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[i % 2]}: {turn}" for i, turn in enumerate(turns))


def hh_row(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": dialogue(prompt, chosen), "rejected": dialogue(prompt, rejected)}


def feedback_row(question: str, answer: str, *ratings: str) -> dict[str, Any]:
    return {"question": question, "passage": {"reference": {"section_content": answer}}, "rating": list(ratings)}


def safety_row(context: str, response: str, label: str) -> dict[str, str]:
    return {"context": context, "response": response, "label": label}


def save_base(directory: Path, architecture: str = "bert", template: str | None = None) -> Path:
    """A tiny bare base with its tokenizer, as encoders are published."""
    fast = (
        checkpoints.encoder_tokenizer()
        if architecture == "bert"
        else checkpoints.decoder_tokenizer(template or checkpoints.CHATML)
    )
    return checkpoints.save(directory, checkpoints.classifier(architecture, fast).base_model, fast)


def write_config(path: Path, base: Path, *, template_text: str = checkpoints.ENCODER, **changes: Any) -> Path:
    """A configuration that trains in a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "template.jinja").write_text(template_text)
    config = {
        "name": "tiny",
        "objective": {"kind": "preference"},
        "base": str(base),
        "template": "template.jinja",
        "sources": [HH],
        "max_length": 48,
        "score_position": "mean",
        "eos": "template",
        "unfinished": "score",
        "lora": {"r": 2, "alpha": 4, "target_modules": ["query", "value"]},
        "optimizer": {"learning_rate": 0.01, "batch_prompts": 8, "compute_dtype": "float32"},
        "split": {"held_out": 0.2, "folds": 2, "test_folds": 2},
        "seed": 3,
        "golden": [["How do I bake bread?", "Mix flour and water."], ["fox", "dog"]],
    }
    path.write_text(yaml.safe_dump(config | changes))
    return path


def renderer(
    architecture: str = "bert", *, max_length: int = 48, score_position: ScorePosition = "mean", **rules: Any
) -> Renderer:
    fast = checkpoints.encoder_tokenizer() if architecture == "bert" else checkpoints.decoder_tokenizer()
    settings = {"eos": "template", "unfinished": "score", "pad_token_id": fast.pad_token_id} | rules
    return Renderer(fast, RenderRules(fast.chat_template, max_length, score_position, **settings), len(fast))


def optimizer(**changes: Any) -> OptimizerConfig:
    defaults = {"learning_rate": 0.01, "batch_prompts": 8, "compute_dtype": "float32"}
    return OptimizerConfig.model_validate(defaults | changes)


def trainable(base: Path, *, seed: int = 0, dropout: float = 0.0) -> tuple[RewardModel, list[nn.Parameter]]:
    """A base with a fresh signal "s", and what of it is trained."""
    torch.manual_seed(seed)
    model = RewardModel.load(base, torch.float32, torch.device("cpu"))
    head = Head.fresh(model.hidden_size, torch.Generator().manual_seed(seed), bias=model.architecture.head_bias)
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["query", "value"])
    model.add_fresh_signal("s", head, lora)
    return model, model.get_parameters("s")


def ranking(prompt: str, completions: Iterable[str], pairs: Pairs = ((0, 1),), source: str = "hh_rlhf/x") -> Ranking:
    judged = tuple(Pair(better, worse) for better, worse in pairs)
    return Ranking(source, prompt, (Message("user", prompt),), tuple(completions), judged)


def labelled(prompt: str, completion: str, label: float, source: str = "feedbackqa") -> Labelled:
    return Labelled(source, prompt, Item.of(prompt, completion), label)


def fake_ids(record: Judged, *lengths: int) -> Example:
    """An example whose sequences have the given lengths; for what never outputs at the ids."""
    return Example(record, tuple(TokenSequence((1,) * length, 0, Span(0, 1)) for length in lengths))


def base_hash(base: Path) -> str:
    return hash_files(list_weight_files(base))
