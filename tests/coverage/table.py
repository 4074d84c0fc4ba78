"""Read the table of reward models, and write it into docs/coverage.md: `python -m tests.coverage.table`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from assay_service import preset

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/coverage.md"
START, END = "<!-- From tests/coverage/models.yaml, by `python -m tests.coverage.table`. -->\n", "<!-- End. -->\n"
NEEDS = ("declarations", "convert", "vllm", "large device", "not served")


@dataclass(frozen=True)
class Model:
    """A published reward model.

    Attributes:
        name: hub id.
        class_name: name of its class in `config.json`.
        model_type: model type in `config.json`.
        needs: one of `NEEDS`.
        source: where class and layout are read.
        shape: name of its layout; "" where none is built.
        reason: why it is not served; "" where it is.
    """

    name: str
    class_name: str
    model_type: str
    needs: str
    source: str
    shape: str = ""
    reason: str = ""


def read_models() -> tuple[list[Model], list[Model]]:
    """Return the models of reward-bench's list, and the others."""
    raw = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text())
    lists = [
        [Model(**{"class_name" if key == "class" else key: value for key, value in row.items()}) for row in raw[name]]
        for name in ("reward_bench", "others")
    ]
    return lists[0], lists[1]


def count_needs(models: Sequence[Model]) -> dict[str, int]:
    """Return how many models need what."""
    return {needs: sum(model.needs == needs for model in models) for needs in NEEDS}


def is_served_simply(model: Model, presets: Collection[str]) -> bool:
    """Return whether a model is served by a preset, or by the one command of a conversion.

    Args:
        model: the model.
        presets: hub ids of the models that have a preset.
    """
    return model.needs != "not served" and (model.name in presets or model.needs == "convert")


def list_presets() -> dict[str, str]:
    """Return the names of the presets by hub id."""
    return {preset.read(name).model: name for name in preset.list_names()}


def print_tables() -> str:
    """Return the part of the page that comes from the data."""
    listed, others = read_models()
    presets = {model: f"`{name}`" for model, name in list_presets().items()}
    counts = count_needs([m for m in listed if m.needs == "not served" or is_served_simply(m, presets)])
    served = sum(is_served_simply(model, presets) for model in listed)
    text = [
        f"Of the {len(listed)} models of reward-bench's list, **{served} ({served / len(listed):.0%}) are served** by "
        "a preset, or by the one command `assay convert`:\n",
        "| needs | models |\n|---|---|",
        f"| a preset | {counts['declarations']} |",
        f"| one command, `assay convert` | {counts['convert']} |",
        f"| a preset with `engine: vllm`, as they have 70B parameters | {counts['vllm']} |",
        f"| a preset, and one device that holds 141 to 145 GB (a head of two layers) | {counts['large device']} |",
        f"| not served | {counts['not served']} |",
        "\n## What is not served, and why\n",
        "| checkpoint | class | reason |\n|---|---|---|",
        *(f"| {m.name} | `{m.class_name}` | {m.reason} |" for m in [*listed, *others] if m.needs == "not served"),
        "\n## What is served\n",
        "The models of reward-bench's list come first.\n",
        "`assay serve DIR --preset NAME` serves a checkpoint that has a [preset](presets.md).\n",
        "| checkpoint | preset | class | layout | needs | source |\n|---|---|---|---|---|---|",
        *(
            f"| {m.name} | {presets.get(m.name, 'none')} | `{m.class_name}` | {m.shape} | {m.needs} | {m.source} |"
            for m in [*listed, *others]
            if m.needs != "not served"
        ),
    ]
    return "\n".join(text) + "\n"


def build_page(page: str) -> str:
    """Return the page with its tables written anew."""
    before, _, rest = page.partition(START)
    return before + START + "\n" + print_tables() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(build_page(PAGE.read_text()))
