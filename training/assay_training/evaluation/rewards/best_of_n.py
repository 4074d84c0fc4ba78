"""What picking the best of N by a served reward is worth by a gold value, as N grows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay_training.algorithms.best_of_n import expected, kl_bound, win_rate
from assay_training.algorithms.statistics import clustered_interval
from assay_training.evaluation import plots
from assay_training.evaluation.results import LENGTH
from assay_training.evaluation.rewards.judged import Candidates
from assay_training.evaluation.rewards.served import GOLD, lengths
from assay_training.evaluation.rows import Logits
from assay_training.evaluation.table import Picture, Table, interval, number, text

NS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COLUMNS = (
    text("source", "source"),
    text("by", "model"),
    text("N", "n"),
    text("prompts", "prompts"),
    number("KL <=", "kl_bound", ".2f"),
    number("gold", "gold", ".3f"),
    interval("95 %", "gold95", ".3f"),
    number("beats one", "win_rate", ".1%"),
    interval("95 %", "win_rate95", ".1%"),
)
NOTES = (
    "Gold: mean of the best of N by the model's score, unbiased, over prompts with N completions or more.",
    "Beats one: how often its gold value is above one more completion's, of prompts with more than N; ties are half.",
    "KL: what the best of N is at most away from the policy, ln N - (N - 1)/N nats.",
)


def best_of_n(candidates: Sequence[Candidates], gold: Logits, scores: Mapping[str, Logits]) -> Table:
    """A record for every source, model and N; the length and the gold value itself are below and above the models.

    Args:
        candidates: prompts with two completions or more.
        gold: what each completion is worth.
        scores: by model, of every completion.
    """
    ways = {**scores, LENGTH: lengths(candidates), GOLD: gold}
    records = [
        _record(source, model, n, [i for i in of if len(gold[i]) >= n], candidates, gold, ways[model])
        for source, of in _by_source(candidates).items()
        for model in ways
        for n in NS
        if any(len(gold[i]) >= n for i in of)
    ]
    pictures = tuple(_picture(source, records) for source in _by_source(candidates))
    return Table("Best of N", tuple(records), COLUMNS, notes=NOTES, pictures=pictures)


def _by_source(candidates: Sequence[Candidates]) -> dict[str, list[int]]:
    sources: dict[str, list[int]] = {}
    for i, of in enumerate(candidates):
        sources.setdefault(of.source, []).append(i)
    return sources


def _record(
    source: str,
    model: str,
    n: int,
    indices: Sequence[int],
    candidates: Sequence[Candidates],
    gold: Logits,
    scores: Logits,
) -> dict[str, Any]:
    scored = [(np.asarray(scores[i]), np.asarray(gold[i], dtype=np.float64)) for i in indices]
    values = np.array([expected(of, worth, n) for of, worth in scored])
    spare = [i for i, (of, _) in enumerate(scored) if len(of) > n]
    wins = np.array([win_rate(*scored[i], n) for i in spare])
    groups = [candidates[i].group for i in indices]
    return {
        "source": source,
        "model": model,
        "n": n,
        "prompts": len(indices),
        "kl_bound": kl_bound(n),
        "gold": float(values.mean()),
        "gold95": clustered_interval(values, groups),
        "win_rate": float(wins.mean()) if len(wins) else None,
        "win_rate95": clustered_interval(wins, [groups[i] for i in spare]),
    }


def _picture(source: str, records: Sequence[Mapping[str, Any]]) -> Picture:
    of = [record for record in records if record["source"] == source]
    lines = {
        str(model): [(float(r["n"]), float(r["gold"])) for r in of if r["model"] == model]
        for model in dict.fromkeys(record["model"] for record in of)
    }
    return Picture(f"{source}: gold value of the best of N.", lambda: plots.lines(lines, "N", "gold"))
