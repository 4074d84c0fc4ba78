"""Write the model card: the results of a run in Markdown, with everything needed to reproduce them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from assay_training.config.data import Split
from assay_training.config.joint import JointConfig
from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import FROZEN, LENGTH, MODEL

Results = Mapping[str, Mapping[str, Any]]

CARD = "MODEL_CARD.md"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The facts that a card states of one head besides its results.

    Attributes:
        config: configuration of a run with this head alone.
        data_sha256: SHA-256 of every data file, by path below the data directory.
        rendering: counts of truncated, refused and dropped items, as in `render.json`.
        examples: number of rankings or labelled items.
        versions: version of each library, by its name.
    """

    config: RewardConfig
    data_sha256: Mapping[str, str]
    rendering: Mapping[str, Any]
    examples: int
    versions: Mapping[str, str]


def render_card(
    heads: Sequence[tuple[CardFacts, Results]], config: RewardConfig | JointConfig, config_path: Path
) -> str:
    """Return the card of a checkpoint as Markdown.

    Args:
        heads: facts and results of each head.
        config: configuration of the whole run.
        config_path: file of the configuration.
    """
    parts = [part for facts, results in heads for part in _render_head(facts, results)]
    return "\n\n".join([*parts, _render_reproduction([facts for facts, _ in heads], config, config_path)]) + "\n"


def _render_head(facts: CardFacts, results: Results) -> list[str]:
    """Return the parts of a card that are about one head."""
    table = _render_preference_table if facts.config.objective.kind == "preference" else _render_absolute_tables
    return [_render_heading(facts), _render_protocol(facts, results), table(results), _render_verdict(results)]


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


def _render_protocol(facts: CardFacts, results: Results) -> str:
    rendering = facts.rendering
    refused, dropped = (
        ", ".join(f"{count} {reason}" for reason, count in rendering[kind].items()) or "none"
        # Run directories of before 2026-11-30 have the key `left_out`.
        for kind in ("refused", "dropped" if "dropped" in rendering else "left_out")
    )
    preference = facts.config.objective.kind == "preference"
    lengths = "the longer completion wins" if preference else "a logistic fit on the log of the completion's characters"
    return (
        f"{facts.examples} {'prompts' if preference else 'items'}. {_describe_split(facts.config.split)} "
        "Intervals are 95 % confidence intervals, clustered by group. "
        f"{_describe_frozen_head(facts.config.split) if _has_frozen_head(results) else ''}*Length*: {lengths}. "
        f"Prompts truncated on the left: {rendering['truncated_prompts']}; completions truncated on the right: "
        f"{rendering['cut_completions']}; items refused by the renderer: {refused}; faulty rows dropped: {dropped}."
    )


def _describe_split(split: Split) -> str:
    """Return which groups were tested, and what the served model was trained on."""
    held_out = f"{split.held_out:.0%} of the groups (a group is a question or a first human turn) were held out"
    if split.folds is None:
        return f"{held_out} and tested. The served model was trained on the others."
    return (
        f"{held_out} to choose hyper-parameters. The others are divided into {split.folds} folds. {split.test_folds} "
        f"of them {'was' if split.test_folds == 1 else 'were'} tested, each by a model that was trained without it. "
        "The served model was trained on all groups."
    )


def _describe_frozen_head(split: Split) -> str:
    """Return how the linear head on the frozen base was fitted."""
    head = "*Frozen head*: a linear head on the same base without the adapter"
    if split.folds is not None:
        return f"{head}, with the ridge penalty chosen on the held-out groups. "
    return (
        f"{head}, fitted on at most {split.frozen_head:,} training records, with the ridge penalty chosen on a fifth "
        "of their groups. "
    )


def _has_frozen_head(results: Results) -> bool:
    """Return whether the results have the baseline of a linear head on the frozen base."""
    return any(FROZEN in numbers["difference"] for numbers in results.values())


def _render_preference_table(results: Results) -> str:
    rows = _render_table_head("pairs of | n | groups", frozen=_has_frozen_head(results))
    for domain, numbers in results.items():
        accuracy, difference = numbers["accuracy"], numbers["difference"]
        if not accuracy:
            continue  # one group gives no interval
        model = accuracy[MODEL]
        rows.append(f"| {domain} | {model['n']} | {model['clusters']} {_render_comparison(accuracy, difference)}")
    return "## Pairwise accuracy\n\n" + "\n".join(rows)


def _render_absolute_tables(results: Results) -> str:
    frozen = _has_frozen_head(results)
    ranks = _render_table_head("items of | n | statistic", frozen=frozen)
    contenders = (MODEL, LENGTH, FROZEN) if frozen else (MODEL, LENGTH)
    shown = " | ".join(["model MSE / MAE", *contenders[1:]])
    errors = [f"| items of | label | n | {shown} |", "|---" * (3 + len(contenders)) + "|"]
    for domain, numbers in results.items():
        rank, difference = numbers["rank"], numbers["difference"]
        # All contenders are compared on the same rows, so one count serves for all.
        count, *_ = numbers["errors"][MODEL]["all"]
        ranks.append(f"| {domain} | {count} | {numbers['statistic']} {_render_comparison(rank, difference)}")
        for bucket, (count, *_) in numbers["errors"][MODEL].items():
            cells = [numbers["errors"][name][bucket] for name in contenders]
            shown = " | ".join(f"{mse:.4f} / {mae:.4f}" for _, mse, mae in cells)
            errors.append(f"| {domain} | {bucket} | {count} | {shown} |")
    buckets = "Buckets by label: low <= 0.4, high >= 0.9, mid between."
    return "## Rank\n\n" + "\n".join(ranks) + f"\n\n## Error\n\n{buckets}\n\n" + "\n".join(errors)


def _render_table_head(first: str, *, frozen: bool) -> list[str]:
    """Return the two lines above a table of a statistic with its baselines."""
    head = f"| {first} | model | length |" + " frozen head | model - frozen |" * frozen
    return [head, "|---" * (head.count("|") - 1) + "|"]


def _render_verdict(results: Results) -> str:
    """Return whether each domain beats its baselines; the text follows from the numbers, it is not written by hand."""
    lines = [f"- {domain}: {_compare_with_baselines(numbers)}" for domain, numbers in results.items()]
    return "## Against the baselines\n\n" + "\n".join(lines)


def _compare_with_baselines(numbers: Mapping[str, Any]) -> str:
    """Return whether the model beats its baselines on one domain."""
    statistic = get_statistic(numbers)
    if not statistic:
        return "too few groups for an interval."
    difference = numbers["difference"]
    # A rank correlation or an AUC is undefined if the values, or the labels, are all equal.
    if None in (statistic[MODEL], statistic[LENGTH], difference.get(FROZEN, 0)):
        return "the values are too alike to be ranked."
    above = statistic[MODEL]["low"] > statistic[LENGTH]["value"]
    length = f"the interval's lower bound is {'above' if above else '**not above**'} the length baseline"
    if FROZEN not in difference:
        return f"{length}."
    better = difference[FROZEN]["value"] > 0
    # An interval that includes 0 shows no difference, even if the estimate is positive.
    certain = difference[FROZEN]["low"] > 0
    return (
        f"{length}; the difference from the frozen head is {'positive' if better else '**not positive**'}"
        f"{', and so is its whole interval' if certain else ''}."
    )


def _render_reproduction(heads: Sequence[CardFacts], config: RewardConfig | JointConfig, config_path: Path) -> str:
    # The template is a file beside the card; the keys stay in the order of the documentation.
    text = yaml.safe_dump(config.model_dump(mode="json", exclude={"template"}), sort_keys=False).strip()
    data = {path: digest for facts in heads for path, digest in facts.data_sha256.items()}
    hashes = "\n".join(f"{digest}  {path}" for path, digest in sorted(data.items()))
    versions = ", ".join(f"{name} {version}" for name, version in heads[0].versions.items())
    return (
        f"## To reproduce\n\n    assay train reward --config {config_path} --data DIR\n\nSeed {config.seed}; "
        f"{versions}. The template is `chat_template.jinja` beside this card.\n\n```yaml\n{text}\n```\n\n"
        f"SHA-256 of the data:\n\n```\n{hashes}\n```"
    )


def _render_comparison(estimates: Results, difference: Results) -> str:
    """Return the cells of a row: model and length, and where it was fitted, the frozen head and the difference."""
    model, length = estimates[MODEL], estimates[LENGTH]
    cells = f"| **{format_interval(model)}** | {_format_value(length)} |"
    if FROZEN in difference:
        frozen = format_interval(difference[FROZEN], signed=True)
        cells += f" {_format_value(estimates[FROZEN])} | {frozen} |"
    return cells


def _format_value(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.3f}"


def get_statistic(numbers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the estimates of one domain by contender: accuracies of pairs, or a rank statistic of items."""
    found: Mapping[str, Any] = numbers["accuracy" if "accuracy" in numbers else "rank"]
    return found


def format_interval(estimate: Mapping[str, float] | None, *, signed: bool = False) -> str:
    """Return an estimate with its interval as text; "-" if there is none.

    Args:
        estimate: the keys `value`, `low` and `high`, or None.
        signed: whether a positive value has a sign.
    """
    if estimate is None:
        return "-"
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
