"""Measure the gold value of the best of N completions by a served reward, as N grows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from assay_training.algorithms.best_of_n import compute_expected_gold, compute_kl_bound, compute_win_rate
from assay_training.algorithms.statistics import (
    Estimate,
    Floats,
    compute_clustered_mean,
    compute_clustered_share,
    compute_interval_bounds,
)
from assay_training.evaluation import plots
from assay_training.evaluation.results import LENGTH, group_by_domain
from assay_training.evaluation.rewards.inputs import Candidates
from assay_training.evaluation.rewards.scores import GOLD, measure_lengths
from assay_training.evaluation.rows import Logits
from assay_training.evaluation.table import (
    Picture,
    Table,
    integer_column,
    interval_column,
    number_column,
    text_column,
)

# Powers of two, at equal distances on the logarithmic axis of the plots.
NS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COLUMNS = (
    text_column("source", "source"),
    text_column("by", "model"),
    integer_column("N", "n"),
    integer_column("prompts", "prompts"),
    number_column("KL <=", "kl_bound", ".2f"),
    number_column("gold", "gold", ".3f"),
    interval_column("95 %", "gold95", ".3f"),
    number_column("win rate", "win_rate", ".1%"),
    interval_column("95 %", "win_rate95", ".1%"),
)
NOTES = (
    "Gold: mean gold value of the best of N by the model's score, an unbiased estimate over prompts with at least N "
    "completions.",
    "If prompts have different numbers of completions, the prompts differ between values of N.",
    "Win rate: how often the best of N has a higher gold value than one more completion, over prompts with more than "
    "N. Ties count one half.",
    "KL: upper bound on the KL divergence of the best of N from the policy, ln N - (N - 1)/N nats.",
)


def tabulate_best_of_n(candidates: Sequence[Candidates], gold: Logits | None, scores: Mapping[str, Logits]) -> Table:
    """Return a table with a record for every source, selecting model and N.

    Selecting by length and by the gold value itself are the lower and the upper baseline.

    Args:
        candidates: prompts with two completions or more.
        gold: gold values of a served model, `[prompt][completion]`; `None` for those of the candidates, in 0..1.
        scores: scores by model, `[prompt][completion]`, as logits.
    """
    gold_values: Logits = [prompt.gold for prompt in candidates] if gold is None else gold
    # Labels are shares, with Wilson's intervals; the scores of a served model have no bounds.
    estimate = compute_clustered_share if gold is None else compute_clustered_mean
    selectors = {**scores, LENGTH: measure_lengths(candidates), GOLD: gold_values}
    records = [
        _build_record(
            (source, model, n),
            [candidates[i].group for i in enough],
            [(selectors[model][i], gold_values[i]) for i in enough],
            estimate,
        )
        for source, inside in _group_by_source(candidates).items()
        for model in selectors
        for n in NS
        # A prompt with fewer than N completions has no best of N.
        if (enough := [i for i in inside if len(gold_values[i]) >= n])
    ]
    pictures = tuple(picture for source in _group_by_source(candidates) for picture in _build_pictures(source, records))
    return Table("Best of N", tuple(records), COLUMNS, notes=NOTES, pictures=pictures)


def _group_by_source(candidates: Sequence[Candidates]) -> dict[str, list[int]]:
    """Return the indices of the prompts of every source, and of every data set with several sources."""
    by_domain = group_by_domain({prompt.source for prompt in candidates})
    return {
        name: [i for i, prompt in enumerate(candidates) if prompt.source in sources]
        for name, sources in by_domain.items()
    }


def _build_record(
    key: tuple[str, str, int],
    groups: Sequence[str],
    rows: Sequence[tuple[Sequence[float], Sequence[float]]],
    estimate: Callable[[Floats, Sequence[str]], Estimate],
) -> dict[str, Any]:
    """Return the record of one source, selecting model and N.

    Args:
        key: source, model and N.
        groups: group of each prompt with N completions or more.
        rows: scores and gold values of the completions of each of these prompts.
        estimate: function from gold values, fp64 `[n]`, and groups to their mean with its interval.
    """
    source, model, n = key
    scored = [(np.asarray(scores), np.asarray(gold, dtype=np.float64)) for scores, gold in rows]
    values = np.array([compute_expected_gold(scores, gold, n) for scores, gold in scored])
    # The opponent is one completion more than the N that are selected from.
    spare = [i for i, (scores, _) in enumerate(scored) if len(scores) > n]
    wins = np.array([compute_win_rate(*scored[i], n) for i in spare])
    return {
        "source": source,
        "model": model,
        "n": n,
        "prompts": len(rows),
        "kl_bound": compute_kl_bound(n),
        "gold": float(values.mean()),
        "gold95": compute_interval_bounds(estimate, values, groups),
        "win_prompts": len(spare),
        "win_rate": float(wins.mean()) if len(wins) else None,
        # The best of one is a sample like its opponent: its win rate is one half for any scores, without an interval.
        "win_rate95": None
        if n == 1
        else compute_interval_bounds(compute_clustered_share, wins, [groups[i] for i in spare]),
    }


def _build_pictures(source: str, records: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Return the plots of the gold value and of the win rate against N, over the prompts with enough completions."""
    pictures = []
    for key, prompts, label, title in (
        ("gold", "prompts", "gold", "gold value of the best of N"),
        ("win_rate", "win_prompts", "win rate", "win rate of the best of N against one more completion"),
    ):
        shown = [record for record in records if record["source"] == source and record[key] is not None]
        if shown:
            caption = f"{source}: {title}, over {_describe_counts({r['n']: r[prompts] for r in shown})}."
            pictures.append(Picture(caption, partial(_draw, shown, key, label)))
    return pictures


def _draw(records: Sequence[Mapping[str, Any]], key: str, label: str) -> Figure:
    lines = {
        str(model): [(float(r["n"]), float(r[key])) for r in records if r["model"] == model]
        for model in dict.fromkeys(record["model"] for record in records)
    }
    # Each tick also shows the KL bound, by which the best of N can be compared with a trained policy.
    ticks = {float(r["n"]): f"{r['n']}\n{r['kl_bound']:.2f}" for r in records}
    return plots.draw_lines(lines, ticks, "N, and below it the bound on the KL divergence in nats", label)


def _describe_counts(prompts: Mapping[int, int]) -> str:
    """Return the number of prompts at every N as text, such as `2 prompts, 1 from N = 4 on`."""
    parts: list[str] = []
    before = None
    for n, count in prompts.items():
        if count != before:
            parts.append(f"{count} from N = {n} on" if parts else f"{count} prompts")
        before = count
    return ", ".join(parts)
