"""What the experiments found, as a page.

    python -m assay_experiments.page > docs/experiments.md

`findings.md` is written by hand; a section for every plan with results follows, and one for the probe texts. A number
is the mean over the seeds ± its standard error.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from assay_training.evaluation.results import STRENGTHS

HERE = Path(__file__).parent

Numbers = dict[str, Any]
Column = tuple[str, Callable[[Numbers], float]]


def cell(values: Iterable[float]) -> str:
    """Mean ± standard error; of a single seed there is none."""
    seen = list(values)
    error = f" ± {statistics.stdev(seen) / len(seen) ** 0.5:.3f}" if len(seen) > 1 else ""
    return f"{statistics.fmean(seen):.3f}{error}"


def table(rows: Sequence[Numbers], columns: Sequence[Column]) -> list[str]:
    """A line per variant, a column per number."""
    lines = [f"| | {' | '.join(name for name, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        seeds = [row["results"] for row in rows if row["variant"] == variant]
        lines.append(f"| {variant} | {' | '.join(cell(map(value, seeds)) for _, value in columns)} |")
    return [*lines, ""]


def at(*path: str | int) -> Callable[[Numbers], float]:
    """The number that lies there."""

    def value(numbers: Any) -> float:  # noqa: ANN401 - JSON
        for step in path:
            numbers = numbers[step]
        return float(numbers)

    return value


def accuracy(domain: str) -> Callable[[Numbers], float]:
    """Of the model."""
    return at(domain, "accuracy", "model", "value")


def accuracies(rows: Sequence[Numbers], domains: Sequence[str]) -> list[str]:
    """Over all pairs of each domain; the length baseline does not depend on the variant."""
    lines = table(rows, [(domain, accuracy(domain)) for domain in domains])
    seeds = {row["seed"]: row["results"] for row in rows}.values()
    length = [cell(at(domain, "accuracy", "length", "value")(of) for of in seeds) for domain in domains]
    return [*lines[:-1], f"| *length* | {' | '.join(length)} |", ""]


def differences(rows: Sequence[Numbers], what: str, columns: Sequence[Column]) -> list[str]:
    """Numbers less those of the first variant with the same seed, and so the same held-out part."""
    first = {row["seed"]: row["results"] for row in rows if row["variant"] == rows[0]["variant"]}
    others = [row for row in rows if row["variant"] != rows[0]["variant"]]
    paired = [row | {"results": {"now": row["results"], "first": first[row["seed"]]}} for row in others]

    def less(value: Callable[[Numbers], float]) -> Callable[[Numbers], float]:
        return lambda of: value(of["now"]) - value(of["first"])

    lines = table(paired, [(name, less(value)) for name, value in columns])
    return [f"{what}, less that of *{rows[0]['variant']}* with the same seed:", "", *lines]


def margins(rows: Sequence[Numbers], domain: str) -> list[str]:
    """The moments of the margins, and the accuracy of best against worst."""

    def relative(of: Numbers) -> float:
        return float(of[domain]["margins"]["mean"] / of[domain]["margins"]["std"])

    names = {"mean margin": "mean", "share < 0": "share_negative", "skewness": "skewness", "kurtosis": "kurtosis"}
    moments = [(name, at(domain, "margins", key)) for name, key in names.items()]
    best: Column = ("best against worst", at(domain, "best against worst", "model", "value"))
    return [f"Margins, {domain}:", "", *table(rows, [best, moments[0], ("mean / std", relative), *moments[1:]])]


def strengths(rows: Sequence[Numbers], domain: str) -> list[str]:
    """Accuracy by preference strength, where a source has gaps."""
    names = [name for name in STRENGTHS if name in rows[0]["results"][domain]["by strength"]]
    if not names:
        return []
    columns = [(name, at(domain, "by strength", name, "model", "value")) for name in names]
    return [f"Accuracy by preference strength, {domain}:", "", *table(rows, columns)]


def preference(rows: Sequence[Numbers]) -> list[str]:
    """Of a plan of preference models."""
    domains = list(rows[0]["results"])
    if len(domains) == 2:  # a single source is all there is
        domains.remove("all")
    lines = ["Accuracy:", "", *accuracies(rows, domains)]
    lines += differences(rows, "Accuracy", [(domain, accuracy(domain)) for domain in domains])
    lines += margins(rows, domains[-1] if len(domains) == 1 else "all")
    return lines + [line for domain in domains if domain != "all" for line in strengths(rows, domain)]


def absolute(rows: Sequence[Numbers]) -> list[str]:
    """Of a plan of absolute models: squared and absolute errors by bucket, and rank correlation."""
    domain = next(iter(rows[0]["results"]))
    buckets = ("low", "high", "mid", "all")
    errors = [
        (f"{b} {name}", at(domain, "errors", "model", b, i)) for i, name in ((1, "MSE"), (2, "MAE")) for b in buckets
    ]
    ranks = [("Spearman", at(domain, "rank", "model", "value")), ("of length", at(domain, "rank", "length", "value"))]
    return [*table(rows, [*errors, *ranks]), *differences(rows, "The same", [*errors, ranks[0]])]


POLICY_COLUMNS: list[Column] = [
    ("KL", at("kl")),
    ("tokens", at("means", "length")),
    ("end by themselves", at("means", "ends")),
    ("preference logit", at("means", "preference")),
    ("absolute logit", at("means", "absolute")),
    *((f"{name} wins", at("wins", name, "value")) for name in ("gold", "larger", "preference", "absolute")),
    ("longer", at("wins", "length", "value")),
]


def section(plan: Path) -> list[str]:
    """A plan's results."""
    given = yaml.safe_load(plan.read_text())
    rows = json.loads((HERE / "results" / f"{plan.stem}.json").read_text())
    seeds = ", ".join(map(str, given["seeds"]))
    lines = [f"## {plan.stem}", "", given["about"].strip(), ""]
    before = f"`{given['before']}`, then " if "before" in given else ""
    command = f"python -m assay_experiments.sweep training/assay_experiments/plans/{plan.name} --data DIR"
    lines += [f"{before}`{command}`, seeds {seeds}.", ""]
    return lines + (preference if given["config"]["objective"]["kind"] == "preference" else absolute)(rows)


BEST_OF_N = (
    "Gold value of the best of N by each model, ± half of its 95 % interval by prompt, and how often it beats one more "
    "completion. `assay evaluate best-of-n FORMAT:PATH --json`, on gsm8k (a model's solutions; right or wrong) and "
    "arena_bench (GPT-4's scores) by the embedded models; and with `--gold gold` and `--gold larger` of "
    "`training/assay_experiments/service.yaml` on answers of the small pipeline's policy to prompts of "
    "`laion_prompt_lottery_en_250_text` (`rollouts.py … --count 40 --samples 80 --tokens 64`) by its own two models."
)
POLICIES = (
    "Policies that were trained on the served rewards of the small pipeline, and the one that they started from. KL: "
    "log π - log π_first of their own answers, nats. Wins: how often an answer has a higher logit than one of the "
    "first policy to the same prompt, by the gold model, which nobody optimised, by a larger model of the preference "
    "data, and by those that were; longer: how often it is. Of the best of N the KL is a bound."
)


COURSES = (
    "The last tenth of each run's steps, and of all steps how long they took and what share of that was waiting for "
    "the service. `python -m assay_experiments.courses training/assay_experiments/plans/{stem}.yaml`."
)
COURSE_COLUMNS: list[Column] = [
    ("score", lambda course: last(course["score"])),
    ("KL", lambda course: last(course["kl"])),
    ("tokens", lambda course: last(course["length"])),
    ("end by themselves", lambda course: last(course["eos_rate"])),
    ("entropy", lambda course: last(course["entropy"])),
    ("s a step", lambda course: statistics.fmean(seconds(course))),
    ("waiting", lambda course: sum(course["score_wait_s"]) / sum(seconds(course))),
]


def last(values: Sequence[float]) -> float:
    """The mean of the last tenth."""
    return statistics.fmean(values[-max(1, round(0.1 * len(values))) :])


def seconds(course: Numbers) -> list[float]:
    """Of every step."""
    parts = zip(course["rollout_s"], course["score_wait_s"], course["update_s"], strict=True)
    return [sum(of) for of in parts]


def courses() -> list[str]:
    """How policies got where they are, plan by plan, with the pictures of that."""
    lines = []
    for path in sorted((HERE / "results").glob("*-courses.json")):
        stem = path.stem.removesuffix("-courses")
        about = yaml.safe_load((HERE / "plans" / f"{stem}.yaml").read_text())["about"].strip()
        rows = [row | {"results": row["course"]} for row in json.loads(path.read_text())]
        lines += [f"## {stem}", "", about, "", COURSES.format(stem=stem), "", *table(rows, COURSE_COLUMNS)]
        pictures = sorted((HERE.parents[1] / "docs" / "figures").glob(f"{stem}-*.svg"))
        lines += [line for picture in pictures for line in (f"![{picture.stem}](figures/{picture.name})", "")]
    return lines


def policies() -> list[str]:
    """What policies have become, plan by plan, beside the one that they started from."""
    rows: list[Numbers] = json.loads((HERE / "results" / "policies.json").read_text())
    lines = ["## policies", "", POLICIES, ""]
    for plan in dict.fromkeys(row["plan"] for row in rows):
        of_plan = [row | {"results": row} for row in rows if row["plan"] == plan]
        if plan:
            lines += [f"`{plan}`: {yaml.safe_load((HERE / 'plans' / f'{plan}.yaml').read_text())['about'].strip()}", ""]
        lines += table(of_plan, POLICY_COLUMNS)
        lines += [line for row in of_plan if plan for line in alone(row, of_plan)]
    return lines


def alone(row: Numbers, of_plan: Sequence[Numbers]) -> list[str]:
    """The interval of a policy without others of its kind, over prompts."""
    if sum(other["variant"] == row["variant"] for other in of_plan) > 1:
        return []
    gold = row["wins"]["gold"]
    return [f"{row['variant']}: gold wins {gold['value']:.3f}, 95 % {gold['low']:.3f} to {gold['high']:.3f}.", ""]


def best_of_n() -> list[str]:
    """Gold value and wins of the best of N, by set, model and N."""
    lines = ["## best of N", "", BEST_OF_N, ""]
    for path in sorted((HERE / "results").glob("best-of-n-*.json")):
        rows: list[Numbers] = json.loads(path.read_text())
        ns = list(dict.fromkeys(row["n"] for row in rows))
        prompts = {n: next(row["prompts"] for row in rows if row["n"] == n) for n in ns}
        bounds = {row["n"]: row["kl_bound"] for row in rows}
        heads = [f"N = {n} ({prompts[n]} prompts, KL <= {bounds[n]:.2f})" for n in ns]
        lines += [f"{path.stem.removeprefix('best-of-n-')}:", "", f"| by | {' | '.join(heads)} |"]
        lines.append("|---" * (len(ns) + 1) + "|")
        for model in dict.fromkeys(row["model"] for row in rows):
            of_model = {row["n"]: row for row in rows if row["model"] == model}
            lines.append(f"| {model} | {' | '.join(picked(of_model[n]) for n in ns)} |")
        lines.append("")
    return lines


def picked(row: Numbers) -> str:
    """Gold value with its half width, and wins over one more completion."""
    wins = "" if row["win_rate"] is None else f"; {row['win_rate']:.3f}"
    return f"{row['gold']:.3f} ± {(row['gold95'][1] - row['gold95'][0]) / 2:.3f}{wins}"


def probes() -> list[str]:
    """For each prompt the kinds of answers, as a model orders them."""
    lines = [
        "## probe texts",
        "",
        "Four answers to four prompts (thesis, Tables 24 to 27), from best to worst as each model orders them.",
        "",
        "`python -m assay_experiments.probe NAME URL --data DIR`, with the models served at URL.",
        "",
    ]
    kept: dict[str, list[Numbers]] = json.loads((HERE / "results" / "probe.json").read_text())
    tables = list(dict.fromkeys(row["table"] for row in kept["thesis"]))
    lines += [f"| | {' | '.join(f'Table {table}' for table in tables)} |", "|---" * (len(tables) + 1) + "|"]
    for name, rows in kept.items():
        for signal in rows[0]["scores"]:
            orders = []
            for table in tables:
                answers = sorted((row for row in rows if row["table"] == table), key=lambda row: -row["scores"][signal])
                orders.append(" > ".join(f"{row['kind']} {row['scores'][signal]:.2f}" for row in answers))
            lines.append(f"| {name}, {signal} | {' | '.join(orders)} |")
    return [*lines, ""]


def main() -> None:
    """Prints the page."""
    plans = sorted((HERE / "plans").glob("*.yaml"))
    done = [plan for plan in plans if (HERE / "results" / f"{plan.stem}.json").is_file()]
    rewards = [plan for plan in done if "command" not in yaml.safe_load(plan.read_text())]
    sys.stdout.write((HERE / "findings.md").read_text() + "\n")
    lines = [line for plan in rewards for line in section(plan)]
    lines += best_of_n()
    lines += courses()
    lines += policies() if (HERE / "results" / "policies.json").is_file() else []
    sys.stdout.write("\n".join(lines + probes()))


if __name__ == "__main__":
    main()
