"""The model card: the numbers of a run in Markdown, with all it takes to repeat them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import FROZEN, LENGTH, MODEL

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says besides the results.

    Attributes:
        config: the run's.
        command: what repeats the run.
        data_sha256: of every file, by path below the data directory.
        rendering: counts of cut and refused items.
        examples: rankings or labelled items.
        versions: of the libraries.
    """

    config: RewardConfig
    command: str
    data_sha256: Mapping[str, str]
    rendering: Mapping[str, Any]
    examples: int
    versions: Mapping[str, str]


def card(facts: CardFacts, results: Results) -> str:
    """The card as Markdown."""
    table = _preference_table if facts.config.objective.kind == "preference" else _absolute_tables
    return "\n\n".join([_heading(facts), _protocol(facts), table(results), _verdict(results), _repeat(facts)]) + "\n"


def _heading(facts: CardFacts) -> str:
    meaning = {
        "preference": "A Bradley-Terry logit: only differences between completions of one prompt mean something.",
        "absolute": "A logit whose sigmoid is a quality in 0..1.",
    }[facts.config.objective.kind]
    trained = "All weights of" if facts.config.lora is None else "A LoRA adapter with its head on"
    return (
        f"# {facts.config.name}\n\n{meaning} {trained} the base `{facts.config.base}`, "
        f"trained on {', '.join(source.name for source in facts.config.sources)}. "
        "Measure it on your own data before you rely on it."
    )


def _protocol(facts: CardFacts) -> str:
    split, rendering = facts.config.split, facts.rendering
    refused, left_out = (
        ", ".join(f"{count} {reason}" for reason, count in rendering[kind].items()) or "none"
        for kind in ("refused", "left_out")
    )
    return (
        f"{facts.examples} {'prompts' if facts.config.objective.kind == 'preference' else 'items'}. "
        f"{split.held_out:.0%} of the groups (a group is a question or a first human turn) were set apart to choose "
        f"hyper-parameters on; the rest is in {split.folds} folds, {split.test_folds} of them tested, each by a model "
        "that was trained without it. "
        "The served model is trained on everything. Intervals are 95 %, by group. *Frozen head*: a linear head on the "
        "same base without adapter, ridge penalty chosen on the development part. *Length*: "
        + (
            "the longer completion wins. "
            if facts.config.objective.kind == "preference"
            else "a logistic fit on the log of the completion's characters. "
        )
        + f"Prompts cut from the left: {rendering['truncated_prompts']}; completions cut on the right: "
        f"{rendering['cut_completions']}; refused: {refused}; faulty rows left out: {left_out}."
    )


def _preference_table(results: Results) -> str:
    rows = [
        "| pairs of | n | groups | model | length | frozen head | model - frozen |",
        "|---|---|---|---|---|---|---|",
    ]
    for domain, numbers in results.items():
        accuracy, difference = numbers["accuracy"], numbers["difference"]
        model = accuracy[MODEL]
        rows.append(f"| {domain} | {model['n']} | {model['clusters']} {_compared(accuracy, difference)}")
    return "## Pairwise accuracy\n\n" + "\n".join(rows)


def _absolute_tables(results: Results) -> str:
    ranks = [
        "| items of | n | statistic | model | length | frozen head | model - frozen |",
        "|---|---|---|---|---|---|---|",
    ]
    errors = ["| items of | label | n | model MSE / MAE | length | frozen head |", "|---|---|---|---|---|---|"]
    for domain, numbers in results.items():
        rank, difference = numbers["rank"], numbers["difference"]
        count, *_ = numbers["errors"][MODEL]["all"]
        ranks.append(f"| {domain} | {count} | {numbers['statistic']} {_compared(rank, difference)}")
        for bucket, (count, *_) in numbers["errors"][MODEL].items():
            cells = [numbers["errors"][name][bucket] for name in (MODEL, LENGTH, FROZEN)]
            shown = " | ".join(f"{mse:.4f} / {mae:.4f}" for _, mse, mae in cells)
            errors.append(f"| {domain} | {bucket} | {count} | {shown} |")
    buckets = "Buckets by label: low <= 0.4, high >= 0.9, mid between."
    return "## Rank\n\n" + "\n".join(ranks) + f"\n\n## Error\n\n{buckets}\n\n" + "\n".join(errors)


def _verdict(results: Results) -> str:
    """Says for every domain whether the wanted bounds were reached; written from the numbers, not by hand."""
    lines = []
    for domain, numbers in results.items():
        statistic = numbers["accuracy" if "accuracy" in numbers else "rank"]
        if None in (statistic[MODEL], statistic[LENGTH], numbers["difference"][FROZEN]):
            lines.append(f"- {domain}: too alike to be ranked.")
            continue
        above = statistic[MODEL]["low"] > statistic[LENGTH]["value"]
        better = numbers["difference"][FROZEN]["value"] > 0
        certain = numbers["difference"][FROZEN]["low"] > 0
        lines.append(
            f"- {domain}: the interval's lower end is {'above' if above else '**not above**'} the length baseline; the "
            f"difference to the frozen head is {'positive' if better else '**not positive**'}"
            f"{', and so is its whole interval' if certain else ''}."
        )
    return "## Against the baselines\n\n" + "\n".join(lines)


def _repeat(facts: CardFacts) -> str:
    config = yaml.safe_dump(facts.config.model_dump(mode="json", exclude={"template"}), sort_keys=False).strip()
    hashes = "\n".join(f"{digest}  {path}" for path, digest in sorted(facts.data_sha256.items()))
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"## To repeat\n\n    {facts.command}\n\nSeed {facts.config.seed}; {versions}. The template is "
        f"`chat_template.jinja` beside this card.\n\n```yaml\n{config}\n```\n\n"
        f"SHA-256 of the data:\n\n```\n{hashes}\n```"
    )


def _compared(estimates: Results, difference: Results) -> str:
    """The cells of a row from the model on: model, length, frozen head, difference to the frozen head."""
    return (
        f"| **{_interval(estimates[MODEL])}** | {_value(estimates[LENGTH])} | {_value(estimates[FROZEN])} "
        f"| {_interval(difference[FROZEN], signed=True)} |"
    )


def _value(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.3f}"


def _interval(estimate: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
