"""Print the page of the experiments, from their committed results.

    python -m assay_experiments.page > docs/experiments.md

`findings.md` is written by hand. A section for every plan with results follows, and one for the probe texts. A number
is the mean over the seeds ± its standard error.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from assay_experiments.agreement_page import format_agreement
from assay_experiments.fidelity_page import format_fidelity
from assay_experiments.page_tables import Column, Results, format_cell, format_table, read_at
from assay_experiments.policies_page import format_policies
from assay_training.evaluation.results import STRENGTHS

HERE = Path(__file__).parent


def read_accuracy(domain: str) -> Callable[[Results], float]:
    """Return a function that reads the model's accuracy on a domain."""
    return read_at(domain, "accuracy", "model", "value")


def format_accuracies(rows: Sequence[Results], domains: Sequence[str]) -> list[str]:
    """Return the table of accuracies over all pairs of each domain, with the length baseline as the last line."""
    lines = format_table(rows, [(domain, read_accuracy(domain)) for domain in domains])
    # One run per seed is enough: the length baseline does not depend on the variant.
    seeds = {row["seed"]: row["results"] for row in rows}.values()
    length = [format_cell(read_at(domain, "accuracy", "length", "value")(run) for run in seeds) for domain in domains]
    return [*lines[:-1], f"| *length* | {' | '.join(length)} |", ""]


def format_differences(rows: Sequence[Results], name: str, columns: Sequence[Column]) -> list[str]:
    """Return the table of differences from the first variant, paired by seed and so by held-out part."""
    first = {row["seed"]: row["results"] for row in rows if row["variant"] == rows[0]["variant"]}
    others = [row for row in rows if row["variant"] != rows[0]["variant"]]
    # Runs of one seed have the same held-out part, so that their difference has less noise than their values.
    paired = [row | {"results": {"now": row["results"], "first": first[row["seed"]]}} for row in others]

    def subtract(value: Callable[[Results], float]) -> Callable[[Results], float]:
        return lambda results: value(results["now"]) - value(results["first"])

    lines = format_table(paired, [(column, subtract(value)) for column, value in columns])
    return [f"{name} minus that of *{rows[0]['variant']}* with the same seed:", "", *lines]


def format_margins(rows: Sequence[Results], domain: str) -> list[str]:
    """Return the table of the moments of margins, and of the accuracy on best against worst completions."""

    def relative(results: Results) -> float:
        return float(results[domain]["margins"]["mean"] / results[domain]["margins"]["std"])

    names = {"mean margin": "mean", "share < 0": "share_negative", "skewness": "skewness", "kurtosis": "kurtosis"}
    moments = [(name, read_at(domain, "margins", key)) for name, key in names.items()]
    best: Column = ("best against worst", read_at(domain, "best against worst", "model", "value"))
    return [f"Margins, {domain}:", "", *format_table(rows, [best, moments[0], ("mean / std", relative), *moments[1:]])]


def format_strengths(rows: Sequence[Results], domain: str) -> list[str]:
    """Return the table of accuracy by preference strength; empty for a domain without gaps."""
    names = [name for name in STRENGTHS if name in rows[0]["results"][domain]["by strength"]]
    if not names:
        return []
    columns = [(name, read_at(domain, "by strength", name, "model", "value")) for name in names]
    return [f"Accuracy by preference strength, {domain}:", "", *format_table(rows, columns)]


def format_preference(rows: Sequence[Results]) -> list[str]:
    """Return the tables of a plan of preference models."""
    domains = list(rows[0]["results"])
    if len(domains) == 2:  # with a single source, `all` repeats it
        domains.remove("all")
    lines = ["Accuracy:", "", *format_accuracies(rows, domains)]
    lines += format_differences(rows, "Accuracy", [(domain, read_accuracy(domain)) for domain in domains])
    lines += format_margins(rows, domains[-1] if len(domains) == 1 else "all")
    return lines + [line for domain in domains if domain != "all" for line in format_strengths(rows, domain)]


def format_absolute(rows: Sequence[Results]) -> list[str]:
    """Return the tables of a plan of absolute models: squared and absolute errors by bucket, and rank correlation."""
    domain = next(iter(rows[0]["results"]))
    buckets = ("low", "high", "mid", "all")
    errors = [
        (f"{b} {name}", read_at(domain, "errors", "model", b, i))
        for i, name in ((1, "MSE"), (2, "MAE"))
        for b in buckets
    ]
    ranks = [
        ("Spearman", read_at(domain, "rank", "model", "value")),
        ("length's Spearman", read_at(domain, "rank", "length", "value")),
    ]
    return [*format_table(rows, [*errors, *ranks]), *format_differences(rows, "Each number", [*errors, ranks[0]])]


def format_section(plan: Path) -> list[str]:
    """Return the section of a plan with results."""
    given = yaml.safe_load(plan.read_text())
    rows = json.loads((HERE / "results" / f"{plan.stem}.json").read_text())
    seeds = ", ".join(map(str, given["seeds"]))
    lines = [f"## {plan.stem}", "", given["about"].strip(), ""]
    before = f"`{given['before']}`, then " if "before" in given else ""
    command = f"python -m assay_experiments.sweep training/assay_experiments/plans/{plan.name} --data DIR"
    lines += [f"{before}`{command}`, seeds {seeds}.", ""]
    return lines + (format_preference if given["config"]["objective"]["kind"] == "preference" else format_absolute)(
        rows
    )


BEST_OF_N = (
    "Each cell has the gold value of the best of N by a model, ± half of its 95 % interval by prompt. Behind it is the "
    "win rate against one more completion. The command is `assay evaluate best-of-n FORMAT:PATH --json`. "
    "The embedded models pick on "
    "gsm8k (a model's solutions; right or wrong) and arena_bench (GPT-4's scores). The small pipeline's own two models "
    "pick on completions of its policy, with `--gold gold` and `--gold larger` of "
    "`training/assay_experiments/service.yaml`. The prompts of these are `laion_prompt_lottery_en_250_text` "
    "(`rollouts.py … --count 40 --samples 80 --tokens 64`)."
)
RUN_METRICS = (
    "Metrics are means over the last tenth of each run's steps. Seconds per step, and the share of them spent waiting "
    "for the service, are over all steps. The command is "
    "`python -m assay_experiments.run_metrics training/assay_experiments/plans/{stem}.yaml`."
)
METRIC_COLUMNS: list[Column] = [
    ("score", lambda metrics: average_last_tenth(metrics["score"])),
    ("KL", lambda metrics: average_last_tenth(metrics["kl"])),
    ("tokens", lambda metrics: average_last_tenth(metrics["length"])),
    ("share with EOS", lambda metrics: average_last_tenth(metrics["eos_rate"])),
    ("entropy", lambda metrics: average_last_tenth(metrics["entropy"])),
    ("s per step", lambda metrics: statistics.fmean(sum_seconds(metrics))),
    ("share waiting", lambda metrics: sum(metrics["score_wait_s"]) / sum(sum_seconds(metrics))),
]


def average_last_tenth(values: Sequence[float]) -> float:
    """Return the mean of the last tenth of a metric's values."""
    return statistics.fmean(values[-max(1, round(0.1 * len(values))) :])


def sum_seconds(metrics: Results) -> list[float]:
    """Return the seconds of every step."""
    parts = zip(metrics["rollout_s"], metrics["score_wait_s"], metrics["update_s"], strict=True)
    return [sum(step) for step in parts]


def format_metrics() -> list[str]:
    """Return the sections of training metrics, plan by plan, with their plots."""
    lines = []
    for path in sorted((HERE / "results").glob("*-metrics.json")):
        stem = path.stem.removesuffix("-metrics")
        about = yaml.safe_load((HERE / "plans" / f"{stem}.yaml").read_text())["about"].strip()
        rows = [row | {"results": row["metrics"]} for row in json.loads(path.read_text())]
        lines += [f"## {stem}", "", about, "", RUN_METRICS.format(stem=stem), "", *format_table(rows, METRIC_COLUMNS)]
        plots = sorted((HERE.parents[1] / "docs" / "figures").glob(f"{stem}-*.svg"))
        lines += [line for plot in plots for line in (f"![{plot.stem}](figures/{plot.name})", "")]
    return lines


def format_best_of_n() -> list[str]:
    """Return the section of gold values and win rates of the best of N, by data set, model and N."""
    lines = ["## best of N", "", BEST_OF_N, ""]
    for path in sorted((HERE / "results").glob("best-of-n-*.json")):
        rows: list[Results] = json.loads(path.read_text())
        ns = list(dict.fromkeys(row["n"] for row in rows))
        prompts = {n: next(row["prompts"] for row in rows if row["n"] == n) for n in ns}
        bounds = {row["n"]: row["kl_bound"] for row in rows}
        heads = [f"N = {n} ({prompts[n]} prompts, KL <= {bounds[n]:.2f})" for n in ns]
        lines += [f"{path.stem.removeprefix('best-of-n-')}:", "", f"| by | {' | '.join(heads)} |"]
        lines.append("|---" * (len(ns) + 1) + "|")
        for model in dict.fromkeys(row["model"] for row in rows):
            of_model = {row["n"]: row for row in rows if row["model"] == model}
            lines.append(f"| {model} | {' | '.join(format_best(of_model[n]) for n in ns)} |")
        lines.append("")
    return lines


def format_best(row: Results) -> str:
    """Return a cell: the gold value, half of its interval, and the win rate against one more completion."""
    wins = "" if row["win_rate"] is None else f"; {row['win_rate']:.3f}"
    return f"{row['gold']:.3f} ± {(row['gold95'][1] - row['gold95'][0]) / 2:.3f}{wins}"


def format_probes() -> list[str]:
    """Return the section of probe texts: each prompt's completions by kind, in the order of each model's logits."""
    lines = [
        "## probe texts",
        "",
        "Four completions of each of four prompts ([CRS] tables 24 to 27), from best to worst by each model.",
        "",
        "`python -m assay_experiments.probe NAME URL --data DIR`, with the models served at URL.",
        "",
    ]
    kept: dict[str, list[Results]] = json.loads((HERE / "results" / "probe.json").read_text())
    tables = list(dict.fromkeys(row["table"] for row in kept["CRS"]))
    lines += [f"| | {' | '.join(f'Table {table}' for table in tables)} |", "|---" * (len(tables) + 1) + "|"]
    for name, rows in kept.items():
        for signal in rows[0]["scores"]:
            orders = []
            for table in tables:
                own = sorted((row for row in rows if row["table"] == table), key=lambda row: -row["scores"][signal])
                orders.append(" > ".join(f"{row['kind']} {row['scores'][signal]:.2f}" for row in own))
            lines.append(f"| {name}, {signal} | {' | '.join(orders)} |")
    return [*lines, ""]


def main() -> None:
    """Print the page."""
    plans = sorted((HERE / "plans").glob("*.yaml"))
    done = [plan for plan in plans if (HERE / "results" / f"{plan.stem}.json").is_file()]
    rewards = [plan for plan in done if "command" not in yaml.safe_load(plan.read_text())]
    sys.stdout.write((HERE / "findings.md").read_text() + "\n")
    lines = [line for plan in rewards for line in format_section(plan)]
    lines += format_agreement() + format_fidelity()
    lines += format_best_of_n()
    lines += format_metrics()
    lines += format_policies("policies") + format_policies("policies-smollm2")
    sys.stdout.write("\n".join(lines + format_probes()))


if __name__ == "__main__":
    main()
