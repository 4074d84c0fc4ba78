"""What picking the best of N by a served reward is worth by a gold value, as N grows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from assay_training.algorithms.best_of_n import expected, kl_bound, win_rate
from assay_training.algorithms.statistics import Estimate, Floats, clustered_mean, clustered_share, interval_bounds
from assay_training.evaluation import plots
from assay_training.evaluation.results import LENGTH, domains
from assay_training.evaluation.rewards.judged import Candidates
from assay_training.evaluation.rewards.served import GOLD, lengths
from assay_training.evaluation.rows import Logits
from assay_training.evaluation.table import Picture, Table, interval, number, text, whole

NS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COLUMNS = (
    text("source", "source"),
    text("by", "model"),
    whole("N", "n"),
    whole("prompts", "prompts"),
    number("KL <=", "kl_bound", ".2f"),
    number("gold", "gold", ".3f"),
    interval("95 %", "gold95", ".3f"),
    number("beats one", "win_rate", ".1%"),
    interval("95 %", "win_rate95", ".1%"),
)
NOTES = (
    "Gold: mean of the best of N by the model's score, unbiased, over prompts with N completions or more.",
    "Where prompts have different numbers of completions, other N are over other prompts.",
    "Beats one: how often its gold value is above one more completion's, of prompts with more than N; ties are half.",
    "KL: what the best of N is at most away from the policy, ln N - (N - 1)/N nats.",
)


def best_of_n(candidates: Sequence[Candidates], gold: Logits | None, scores: Mapping[str, Logits]) -> Table:
    """A record for every source, model and N; the length and the gold value itself are below and above the models.

    Args:
        candidates: prompts with two completions or more.
        gold: what each completion is worth, by a served model; None for what the candidates say themselves, in 0..1.
        scores: by model, of every completion.
    """
    worth: Logits = [of.gold for of in candidates] if gold is None else gold
    mean = clustered_share if gold is None else clustered_mean
    ways = {**scores, LENGTH: lengths(candidates), GOLD: worth}
    records = [
        _record(source, model, n, [candidates[i].group for i in of], [(ways[model][i], worth[i]) for i in of], mean)
        for source, inside in _by_source(candidates).items()
        for model in ways
        for n in NS
        if (of := [i for i in inside if len(worth[i]) >= n])
    ]
    pictures = tuple(picture for source in _by_source(candidates) for picture in _pictures(source, records))
    return Table("Best of N", tuple(records), COLUMNS, notes=NOTES, pictures=pictures)


def _by_source(candidates: Sequence[Candidates]) -> dict[str, list[int]]:
    """Return the places of every source's prompts, and of a data set's whose sources are several."""
    found = domains({of.source for of in candidates})
    return {name: [i for i, of in enumerate(candidates) if of.source in sources] for name, sources in found.items()}


def _record(
    source: str,
    model: str,
    n: int,
    groups: Sequence[str],
    rows: Sequence[tuple[Sequence[float], Sequence[float]]],
    mean: Callable[[Floats, Sequence[str]], Estimate],
) -> dict[str, Any]:
    """Of prompts with n completions or more: their groups, and scores and gold values of their completions."""
    scored = [(np.asarray(scores), np.asarray(gold, dtype=np.float64)) for scores, gold in rows]
    values = np.array([expected(of, worth, n) for of, worth in scored])
    spare = [i for i, (of, _) in enumerate(scored) if len(of) > n]
    wins = np.array([win_rate(*scored[i], n) for i in spare])
    return {
        "source": source,
        "model": model,
        "n": n,
        "prompts": len(rows),
        "kl_bound": kl_bound(n),
        "gold": float(values.mean()),
        "gold95": interval_bounds(mean, values, groups),
        "win_prompts": len(spare),
        "win_rate": float(wins.mean()) if len(wins) else None,
        # The best of one is a sample like its opponent: one half, whatever the scores are.
        "win_rate95": None if n == 1 else interval_bounds(clustered_share, wins, [groups[i] for i in spare]),
    }


def _pictures(source: str, records: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Gold value and wins as N grows; a line is drawn over all prompts that have enough completions."""
    of = [record for record in records if record["source"] == source]
    found = []
    for key, prompts, label, what in (
        ("gold", "prompts", "gold", "gold value of the best of N"),
        ("win_rate", "win_prompts", "win rate", "how often the best of N beats one more completion"),
    ):
        there = [record for record in of if record[key] is not None]
        if there:
            caption = f"{source}: {what}, over {_counted({r['n']: r[prompts] for r in there})}."
            found.append(Picture(caption, partial(_curves, there, key, label)))
    return found


def _curves(records: Sequence[Mapping[str, Any]], key: str, label: str) -> Figure:
    lines = {
        str(model): [(float(r["n"]), float(r[key])) for r in records if r["model"] == model]
        for model in dict.fromkeys(record["model"] for record in records)
    }
    ticks = {float(r["n"]): f"{r['n']}\n{r['kl_bound']:.2f}" for r in records}
    return plots.lines(lines, ticks, "N, and below it the bound on the KL in nats", label)


def _counted(prompts: Mapping[int, int]) -> str:
    """How many prompts a curve has at every N, said once where it does not change."""
    told: list[str] = []
    before = None
    for n, count in prompts.items():
        if count != before:
            told.append(f"{count} from N = {n} on" if told else f"{count} prompts")
        before = count
    return ", ".join(told)
