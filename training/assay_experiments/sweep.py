"""Variants of a configuration, each with several seeds, each a run of `assay train …`; and their table.

    python -m assay_experiments.sweep PLAN --data DIR [--url URL] [--out runs/experiments] [--workers 2]

A plan is YAML: `about`, `before` (a command that has to be run before, or to be running), `command` (of `assay train`:
`reward` if it does not say), `config` (of that command), `seeds`, `variants`: by name, what of the configuration is
replaced, and `once`: variants of the first seed alone. `--url` is for commands that ask a service. What has been run is
kept. Results go to `training/assay_experiments/results/PLAN.json`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from tqdm import tqdm

HERE = Path(__file__).parent


def variant(config: dict[str, Any], changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """The configuration of one run; what is a mapping on both sides is replaced key by key."""
    merged = dict(config)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if both else value
    return merged | {"seed": seed}


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int
    config: dict[str, Any]
    directory: Path


def read(plan: Path) -> dict[str, Any]:
    """A plan, whose paths are relative to it and do not depend on where a configuration is written."""
    given: dict[str, Any] = yaml.safe_load(plan.read_text())
    for config in (given["config"], *given["variants"].values(), *given.get("once", {}).values()):
        for key in {"base", "template"} & (config or {}).keys():
            if not config[key].startswith("package:"):
                config[key] = str((plan.parent / config[key]).resolve())
    return given


def runs_of(plan: Path, given: Mapping[str, Any], out: Path) -> list[Run]:
    """All of a plan's, seed by seed; variants of the first seed alone come with that one."""
    always, once = given["variants"], given.get("once", {})
    return [
        Run(
            name,
            seed,
            variant(given["config"], changes or {}, seed),
            out / plan.stem / name.replace(" ", "_") / str(seed),
        )
        for seed in given["seeds"]
        for name, changes in (always | once if seed == given["seeds"][0] else always).items()
    ]


def train(config: dict[str, Any], options: Sequence[str], out: Path) -> dict[str, Any]:
    """One run, in a process of its own with one thread; returns its results.

    Args:
        config: the run's.
        options: the command, and what it takes besides `--config` and `--out`.
        out: the run directory.

    Raises:
        ValueError: a run of another configuration is there.
    """
    written = out.with_suffix(".yaml")
    if written.is_file() and yaml.safe_load(written.read_text()) != config:
        raise ValueError(f"{out} holds a run of another configuration; remove it, or choose another --out")
    if not (out / "results.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(yaml.safe_dump(config))
        command = [Path(sys.executable).with_name("assay"), "train", *options, "--config", written, "--out", out]
        with out.with_suffix(".log").open("w") as log:
            subprocess.run(
                [str(part) for part in command],
                check=True,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def write_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The results of that name, a line each."""
    (HERE / "results").mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / "results" / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def main(
    plan: Annotated[Path, typer.Argument(exists=True)],
    data: Annotated[Path, typer.Option(exists=True)],
    url: str | None = None,
    out: Path = Path("runs/experiments"),
    workers: int = 2,
) -> None:
    """Runs what of a plan has not been run, and writes its results."""
    given = read(plan)
    runs = runs_of(plan, given, out)
    options = [given.get("command", "reward"), "--data", str(data), *(["--url", url] if url else [])]
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(train, run.config, options, run.directory) for run in runs]
        done = [future.result() for future in tqdm(waiting, desc=plan.stem)]
    results = [{"variant": run.variant, "seed": run.seed, "results": of} for run, of in zip(runs, done, strict=True)]
    write_rows(plan.stem, results)


if __name__ == "__main__":
    typer.run(main)
