"""Write the model card: the results of a run in Markdown, with everything needed to reproduce them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import FROZEN, LENGTH, MODEL

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The facts that a card states besides the results.

    Attributes:
        config: configuration of the run.
        command: command that reproduces the run.
        data_sha256: SHA-256 of every data file, by path below the data directory.
        rendering: counts of truncated, refused and dropped items, as in `render.json`.
        examples: number of rankings or labelled items.
        versions: version of each library, by its name.
    """

    config: RewardConfig
    command: str
    data_sha256: Mapping[str, str]
    rendering: Mapping[str, Any]
    examples: int
    versions: Mapping[str, str]


def render_card(facts: CardFacts, results: Results) -> str:
    """Return the card as Markdown."""
    table = _render_preference_table if facts.config.objective.kind == "preference" else _render_absolute_tables
    return (
        "\n\n".join(
            [
                _render_heading(facts),
                _render_protocol(facts),
                table(results),
                _render_verdict(results),
                _render_reproduction(facts),
            ]
        )
        + "\n"
    )


def _render_heading(facts: CardFacts) -> str:
    meaning = {
        "preference": "A Bradley-Terry logit: only differences between completions of the same prompt have a meaning.",
        "absolute": "A logit whose sigmoid is a quality in 0..1.",
    }[facts.config.objective.kind]
    trained = "All weights of" if facts.config.lora is None else "A LoRA adapter with its head on"
    return (
        f"# {facts.config.name}\n\n{meaning} {trained} the base `{facts.config.base}`, "
        f"trained on {', '.join(source.name for source in facts.config.sources)}. "
        "Measure it on your own data before you rely on it."
    )


def _render_protocol(facts: CardFacts) -> str:
    split, rendering = facts.config.split, facts.rendering
    refused, dropped = (
        ", ".join(f"{count} {reason}" for reason, count in rendering[kind].items()) or "none"
        # The file's key for dropped rows is `left_out`, which older run directories have too.
        for kind in ("refused", "left_out")
    )
    return (
        f"{facts.examples} {'prompts' if facts.config.objective.kind == 'preference' else 'items'}. "
        f"{split.held_out:.0%} of the groups (a group is a question or a first human turn) were held out to choose "
        f"hyper-parameters. The others are divided into {split.folds} folds. {split.test_folds} of them "
        f"{'was' if split.test_folds == 1 else 'were'} tested, each by a model that was trained without it. "
        "The served model was trained on all groups. Intervals are 95 % confidence intervals, clustered by group. "
        "*Frozen head*: a linear head on the same base without the adapter, with the ridge penalty chosen on the "
        "held-out groups. *Length*: "
        + (
            "the longer completion wins. "
            if facts.config.objective.kind == "preference"
            else "a logistic fit on the log of the completion's characters. "
        )
        + f"Prompts truncated on the left: {rendering['truncated_prompts']}; completions truncated on the right: "
        f"{rendering['cut_completions']}; items refused by the renderer: {refused}; faulty rows dropped: {dropped}."
    )


def _render_preference_table(results: Results) -> str:
    rows = [
        "| pairs of | n | groups | model | length | frozen head | model - frozen |",
        "|---|---|---|---|---|---|---|",
    ]
    for domain, numbers in results.items():
        accuracy, difference = numbers["accuracy"], numbers["difference"]
        model = accuracy[MODEL]
        rows.append(f"| {domain} | {model['n']} | {model['clusters']} {_render_comparison(accuracy, difference)}")
    return "## Pairwise accuracy\n\n" + "\n".join(rows)


def _render_absolute_tables(results: Results) -> str:
    ranks = [
        "| items of | n | statistic | model | length | frozen head | model - frozen |",
        "|---|---|---|---|---|---|---|",
    ]
    errors = ["| items of | label | n | model MSE / MAE | length | frozen head |", "|---|---|---|---|---|---|"]
    for domain, numbers in results.items():
        rank, difference = numbers["rank"], numbers["difference"]
        # All contenders are compared on the same rows, so one count serves for all.
        count, *_ = numbers["errors"][MODEL]["all"]
        ranks.append(f"| {domain} | {count} | {numbers['statistic']} {_render_comparison(rank, difference)}")
        for bucket, (count, *_) in numbers["errors"][MODEL].items():
            cells = [numbers["errors"][name][bucket] for name in (MODEL, LENGTH, FROZEN)]
            shown = " | ".join(f"{mse:.4f} / {mae:.4f}" for _, mse, mae in cells)
            errors.append(f"| {domain} | {bucket} | {count} | {shown} |")
    buckets = "Buckets by label: low <= 0.4, high >= 0.9, mid between."
    return "## Rank\n\n" + "\n".join(ranks) + f"\n\n## Error\n\n{buckets}\n\n" + "\n".join(errors)


def _render_verdict(results: Results) -> str:
    """Return whether each domain beats its baselines; the text follows from the numbers, it is not written by hand."""
    lines = []
    for domain, numbers in results.items():
        statistic = numbers["accuracy" if "accuracy" in numbers else "rank"]
        # A rank correlation or an AUC is undefined if the values, or the labels, are all equal.
        if None in (statistic[MODEL], statistic[LENGTH], numbers["difference"][FROZEN]):
            lines.append(f"- {domain}: the values are too alike to be ranked.")
            continue
        above = statistic[MODEL]["low"] > statistic[LENGTH]["value"]
        better = numbers["difference"][FROZEN]["value"] > 0
        # An interval that includes 0 shows no difference, even if the estimate is positive.
        certain = numbers["difference"][FROZEN]["low"] > 0
        lines.append(
            f"- {domain}: the interval's lower bound is {'above' if above else '**not above**'} the length baseline; "
            f"the difference from the frozen head is {'positive' if better else '**not positive**'}"
            f"{', and so is its whole interval' if certain else ''}."
        )
    return "## Against the baselines\n\n" + "\n".join(lines)


def _render_reproduction(facts: CardFacts) -> str:
    # The template is a file beside the card; the keys stay in the order of the documentation.
    config = yaml.safe_dump(facts.config.model_dump(mode="json", exclude={"template"}), sort_keys=False).strip()
    hashes = "\n".join(f"{digest}  {path}" for path, digest in sorted(facts.data_sha256.items()))
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"## To reproduce\n\n    {facts.command}\n\nSeed {facts.config.seed}; {versions}. The template is "
        f"`chat_template.jinja` beside this card.\n\n```yaml\n{config}\n```\n\n"
        f"SHA-256 of the data:\n\n```\n{hashes}\n```"
    )


def _render_comparison(estimates: Results, difference: Results) -> str:
    """Return the cells of a row: model, length, frozen head, and model minus frozen head."""
    model, length, frozen = estimates[MODEL], estimates[LENGTH], estimates[FROZEN]
    return (
        f"| **{_format_interval(model)}** | {_format_value(length)} | {_format_value(frozen)} "
        f"| {_format_interval(difference[FROZEN], signed=True)} |"
    )


def _format_value(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.3f}"


def _format_interval(estimate: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
