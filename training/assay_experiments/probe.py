"""Score the probe texts of [CRS] (tables 24 to 27: best, bad, irrelevant, meaningless) by all signals of a service.

    python -m assay_experiments.probe NAME URL --data DIR     # URL of a running service

The logits of every signal are stored under NAME in `training/assay_experiments/results/probe.json`.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from assay_client.client import RewardClient

RESULTS = Path(__file__).parent / "results" / "probe.json"
FIRST_TABLE = 24  # the number in [CRS] of the first probe's table


def main(name: str, url: str, data: Annotated[Path, typer.Option(exists=True)]) -> None:
    """Score the texts by every signal of the service."""
    probes = json.loads((data / "crs_thesis" / "probe.json").read_text())
    numbered = list(enumerate(probes, start=FIRST_TABLE))
    rows = [(table, response) for table, probe in numbered for response in probe["responses"]]
    items = [(probe["prompt"], response["text"]) for probe in probes for response in probe["responses"]]
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept["CRS"] = [{"table": t, "kind": r["kind"], "scores": {"reported": r["thesis_score"]}} for t, r in rows]
    with RewardClient(url) as client:
        signals = [card.id for card in client.models() if card.kind != "blend"]
        scored = {signal: client.score(items, model=signal).scores() for signal in signals}
    kept[name] = [
        {"table": t, "kind": r["kind"], "scores": {signal: scores[i] for signal, scores in scored.items()}}
        for i, (t, r) in enumerate(rows)
    ]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
