"""Run the variants of a configuration with several seeds, each by `assay train …`, and collect their results.

    python -m assay_experiments.sweep PLAN --data DIR [--url URL] [--out runs/experiments] [--workers 2]

A plan is YAML with these keys:

- `about`: description of the experiment;
- `before`: command that must have run before, or must be running;
- `command`: command of `assay train`; the default is `reward`;
- `config`: configuration of that command;
- `seeds`: seeds of the runs;
- `variants`: changes to the configuration, by the name of the variant;
- `once`: variants that run with the first seed only.

`--url` is for commands that need a service. Finished runs are kept. Results go to
`training/assay_experiments/results/PLAN.json`.
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


def apply_variant(config: dict[str, Any], changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the configuration of one run; where both values are mappings, they are merged key by key."""
    merged = dict(config)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if both else value
    return merged | {"seed": seed}


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
        variant: name of the variant.
        seed: seed of the run.
        config: configuration of the run.
        directory: run directory.
    """

    variant: str
    seed: int
    config: dict[str, Any]
    directory: Path


def read_plan(plan: Path) -> dict[str, Any]:
    """Read a plan, and make its relative paths absolute, because configurations are written to other folders."""
    given: dict[str, Any] = yaml.safe_load(plan.read_text())
    for config in (given["config"], *given["variants"].values(), *given.get("once", {}).values()):
        for key in {"base", "template"} & (config or {}).keys():
            if not config[key].startswith("package:"):
                config[key] = str((plan.parent / config[key]).resolve())
    return given


def build_runs(plan: Path, given: Mapping[str, Any], out: Path) -> list[Run]:
    """Build all runs of a plan, seed by seed; variants of `once` are among those of the first seed.

    Args:
        plan: file of the plan, which names the folder of its runs.
        given: content of the plan.
        out: folder of all plans' runs.
    """
    always, once = given["variants"], given.get("once", {})
    return [
        Run(
            name,
            seed,
            apply_variant(given["config"], changes or {}, seed),
            out / plan.stem / name.replace(" ", "_") / str(seed),
        )
        for seed in given["seeds"]
        for name, changes in (always | once if seed == given["seeds"][0] else always).items()
    ]


def train(config: dict[str, Any], options: Sequence[str], out: Path) -> dict[str, Any]:
    """Run `assay train` in a process of its own with one thread, and return its results.

    Args:
        config: configuration of the run.
        options: command of `assay train`, and its options except `--config` and `--out`.
        out: run directory.

    Raises:
        ValueError: the run directory holds a run of another configuration.
        subprocess.CalledProcessError: the run failed; its output is in the file `.log` beside the run directory.
    """
    written = out.with_suffix(".yaml")
    # Results of another configuration must not be reported under this one.
    if written.is_file() and yaml.safe_load(written.read_text()) != config:
        raise ValueError(f"{out} holds a run of another configuration; remove it, or choose another --out")
    if not (out / "results.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(yaml.safe_dump(config))
        # The command of this environment, also where it is not activated.
        command = [Path(sys.executable).with_name("assay"), "train", *options, "--config", written, "--out", out]
        with out.with_suffix(".log").open("w") as log:
            subprocess.run(
                [str(part) for part in command],
                check=True,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},  # runs are parallel; more threads each would only compete
            )
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def write_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write results to a file of a name, one line per row."""
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
    """Run the unfinished runs of a plan, and write all its results."""
    given = read_plan(plan)
    runs = build_runs(plan, given, out)
    options = [given.get("command", "reward"), "--data", str(data), *(["--url", url] if url else [])]
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(train, run.config, options, run.directory) for run in runs]
        done = [future.result() for future in tqdm(waiting, desc=plan.stem)]
    results = [{"variant": run.variant, "seed": run.seed, "results": row} for run, row in zip(runs, done, strict=True)]
    write_rows(plan.stem, results)


if __name__ == "__main__":
    typer.run(main)
