"""Print the sections of trained policies, from the results of `policies.py`."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from assay_experiments.page_tables import Column, Results, format_table, read_at

HERE = Path(__file__).parent

_POLICIES = (
    "Policies that were trained on the served rewards of the small pipeline, and their initial policy. KL is "
    "log π - log π_first on the policy's own completions, in nats per completion; for the best of N it is a bound. "
    "A win rate is the share of comparisons in which the completion has a higher logit than the initial policy's on "
    "the same prompt. Four models judge: the gold model, on which no policy was trained; a larger model of "
    "the preference data; and the two models on which policies were trained. The last column is the share of "
    "comparisons in which the completion is longer."
)

_SMOLLM2 = (
    "Policies that were trained from SmolLM2-135M-Instruct on the embedded models, and SmolLM2 itself. KL and win "
    "rates are those of the section above. The gold model learned from other prompts, answers and judges. Below the "
    "table are the first completions of the first prompts, cut off at 64 tokens."
)
_ABOUT = {"policies": _POLICIES, "policies-smollm2": _SMOLLM2}
JUDGES = ("gold", "larger", "preference", "absolute")


def list_policy_columns(row: Results) -> list[Column]:
    """Return the columns of a table of policies, with a win rate for each model that judged them."""
    return [
        ("KL", read_at("kl")),
        ("tokens", read_at("means", "length")),
        ("share with EOS", read_at("means", "ends")),
        ("preference logit", read_at("means", "preference")),
        ("absolute logit", read_at("means", "absolute")),
        *((f"{name} win rate", read_at("wins", name, "value")) for name in JUDGES if name in row["wins"]),
        ("longer than initial", read_at("wins", "length", "value")),
    ]


def format_policies(name: str) -> list[str]:
    """Return a section of trained policies, plan by plan, beside their initial policy; empty without results.

    Args:
        name: name of the file of results, and of the section.
    """
    path = HERE / "results" / f"{name}.json"
    if not path.is_file():
        return []
    rows: list[Results] = json.loads(path.read_text())
    lines = [f"## {name}", "", _ABOUT[name], ""]
    for plan in dict.fromkeys(row["plan"] for row in rows):
        members = [row | {"results": row} for row in rows if row["plan"] == plan]
        if plan:
            lines += [f"`{plan}`: {yaml.safe_load((HERE / 'plans' / f'{plan}.yaml').read_text())['about'].strip()}", ""]
        lines += format_table(members, list_policy_columns(members[0]))
        lines += [line for row in members if plan for line in format_interval(row, members)]
    return lines + format_texts(rows)


def format_texts(rows: Sequence[Results]) -> list[str]:
    """Return the completions of the first prompts by each policy, where they were kept."""
    shown = [(row["variant"], row["texts"]) for row in rows if "texts" in row]
    lines = []
    for number, text in enumerate(shown[0][1] if shown else []):
        lines += [f"> {' '.join(text['prompt'].split())}", ""]
        lines += [f"- {variant}: {' '.join(texts[number]['completion'].split())}" for variant, texts in shown]
        lines.append("")
    return lines


def format_interval(row: Results, members: Sequence[Results]) -> list[str]:
    """Return a policy's interval over prompts, if it is the only run of its variant and so has no error over seeds."""
    if sum(other["variant"] == row["variant"] for other in members) > 1:
        return []
    # A single run has no spread over seeds; its interval is over prompts.
    gold = row["wins"]["gold"]
    return [f"{row['variant']}: gold win rate {gold['value']:.3f}, 95 % {gold['low']:.3f} to {gold['high']:.3f}.", ""]
