"""Write the section of the experiments' page about what int8 changes."""

from assay_experiments.agreement_page import Results, read_results
from assay_training.reward_model.card import format_interval

TEXT = (
    "Models in float32 and in int8 (`compute: int8`), on pairs of HH and FeedbackQA whose groups no model was trained "
    "on. The embedded adapters are those that were trained without a quarter of the groups. Differences of logits are "
    "in standard deviations of the float32 logits. The last column is the paired difference of the accuracies, int8 "
    "minus float32. The commands are in the docstring of `fidelity.py`."
)


def format_fidelity() -> list[str]:
    """Return the section, or no lines without results."""
    kept = read_results("fidelity")
    if not kept:
        return []
    lines = ["## int8", "", TEXT, ""]
    lines.append("| model | items | mean difference | largest | Spearman | same order | accuracy, int8 | difference |")
    lines.append("|---" * 8 + "|")
    return [*lines, *(f"| {name} | {_format_row(found)} |" for name, found in kept.items()), ""]


def _format_row(found: Results) -> str:
    fidelity = found["fidelity"]
    cells = (
        f"{fidelity['items']}",
        f"{fidelity['mean_difference']:.4f}",
        f"{fidelity['largest_difference']:.3f}",
        f"{fidelity['spearman']:.5f}",
        f"{fidelity['order_agreement']:.4f} of {fidelity['pairs']}",
        format_interval(found["accuracy"]["model"]),
        format_interval(found["difference"], signed=True),
    )
    return " | ".join(cells)
