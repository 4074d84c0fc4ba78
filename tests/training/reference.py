"""The page of configuration keys, from the models: `python -m tests.training.reference` writes it.

A test holds docs/train-configuration.md to it.
"""

import inspect
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from assay_training.config import data, mixture, model, objective, rollout
from assay_training.config.joint import HeadConfig, JointConfig
from assay_training.config.ppo import Kl, Ppo, PpoConfig, Rollout
from assay_training.config.rejection import RejectionConfig
from assay_training.config.reward import RewardConfig
from assay_training.config.sft import SftConfig, Stage

PAGE = Path(__file__).parents[2] / "docs" / "train-configuration.md"
STEPS: Sequence[type[BaseModel]] = get_args(get_args(mixture.Step)[0])
SECTIONS: dict[str, Sequence[type[BaseModel]]] = {
    "assay train reward": [RewardConfig, JointConfig, HeadConfig],
    "assay train sft": [SftConfig, Stage],
    "assay train ppo": [PpoConfig],
    "assay train rejection": [RejectionConfig],
    "Data": [data.Source, data.Split],
    "Mixture": STEPS,
    "Objective": [
        objective.PreferenceObjective,
        objective.LabelledMargin,
        objective.BatchMeanMargin,
        objective.AbsoluteObjective,
    ],
    "Adapter and optimizer": [model.Lora, model.Adam, model.OptimizerConfig],
    "Rewards and rollouts": [
        rollout.Reward,
        rollout.Expected,
        rollout.ExpectedSignal,
        rollout.Sampled,
        Rollout,
        Kl,
        Ppo,
    ],
}
TITLES: dict[type[BaseModel], str] = {
    JointConfig: "several heads on one trunk",
    HeadConfig: "a head of heads",
    Stage: "a stage",
    data.Source: "a source",
    data.Split: "split",
    objective.PreferenceObjective: "objective: kind preference",
    objective.LabelledMargin: "margin: kind labelled",
    objective.BatchMeanMargin: "margin: kind batch_mean",
    objective.AbsoluteObjective: "objective: kind absolute",
    model.Lora: "lora",
    model.Adam: "optimizer of ppo",
    model.OptimizerConfig: "optimizer",
    rollout.Reward: "reward",
    rollout.Expected: "reward.expect",
    rollout.ExpectedSignal: "a signal of reward.expect",
    rollout.Sampled: "rollout of rejection",
    Rollout: "rollout of ppo",
    Kl: "kl",
    Ppo: "ppo",
}
HEAD = """# The keys of training configurations

These tables are generated from the models in `training/assay_training/config/`, and a test compares both. Paths are
relative to the folder of the YAML file. `assay train reward --example` (also `sft`, `ppo`, `rejection`) prints a file
to start from. A key without a default is required. Null is allowed where the type says so.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for name, models in SECTIONS.items() for line in _section(name, models))])


def _section(name: str, models: Sequence[type[BaseModel]]) -> Iterator[str]:
    yield f"## {name}\n"
    if models is STEPS:
        yield from _steps()
        return
    for one in models:
        if one in TITLES:
            yield f"### {TITLES[one]}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        meant = meanings(one)
        for key, field in one.model_fields.items():
            meaning = f"`{_only(field)}`." if _only(field) else meant[key]
            yield f"| `{key}` | {_type(field)} | {_default(field)} | {meaning.replace('|', chr(92) + '|')} |"
        yield ""


def _steps() -> Iterator[str]:
    yield "[train.md](train.md#data) explains the steps; each is written `{step: NAME, …}`.\n"
    yield "| step | key | type | meaning |\n|---|---|---|---|"
    for one in STEPS:
        keys = [(key, field) for key, field in one.model_fields.items() if key != "step"]
        rows = [f"`{key}` | {_type(field)} | {meanings(one)[key]}" for key, field in keys] or [" | |"]
        yield from (f"| `{get_args(one.model_fields['step'].annotation)[0]}` | {row} |" for row in rows)
    yield ""


def _only(field: FieldInfo) -> str | None:
    """The value of a key that has just one."""
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return str(values[0]) if len(values) == 1 else None


def meanings(one: type[BaseModel]) -> dict[str, str]:
    """The sentences that docstrings have on attributes, also those of the parent classes."""
    found: dict[str, str] = {}
    for kind in reversed(one.__mro__):
        _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?= {4}\w)", f"\n{listed}"):
            key, colon, sentence = entry.strip().partition(": ")
            if colon:
                found[key] = " ".join(sentence.split())
    return found


def _type(field: FieldInfo) -> str:
    bounds = [_bound(constraint) for constraint in field.metadata]
    words = ", ".join(filter(None, [_words(field.annotation), *bounds]))
    return words.replace("|", "\\|")


def _bound(constraint: Any) -> str | None:
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="), ("multiple_of", "multiple of")):
        if getattr(constraint, name, None) is not None:
            limit = getattr(constraint, name)
            return f"{sign} {limit if isinstance(limit, int) else f'{limit:g}'}"
    return None


_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", PurePosixPath: "path"}


def _words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [_bound(constraint) for constraint in parts[1:]] + [
            _bound(constraint) for f in parts[1:] for constraint in getattr(f, "metadata", ())
        ]
        return ", ".join([_words(parts[0]), *filter(None, inner)])
    if origin in (Union, types.UnionType):
        named = " or ".join(dict.fromkeys(_words(part) for part in parts if part is not types.NoneType))
        return "[a step](#mixture)" if set(STEPS) <= set(parts) else named + " or null" * (types.NoneType in parts)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        anchor = re.sub(r"[^a-z0-9_ -]", "", TITLES.get(annotation, "").lower()).replace(" ", "-")
        return f"[{TITLES.get(annotation)}](#{anchor})"
    return _PLAIN[annotation] if origin is None else _of_several(origin, parts)


def _of_several(origin: Any, parts: tuple[Any, ...]) -> str:
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin is dict:
        return f"mapping of {_words(parts[0])} to {_words(parts[1])}"
    if origin is list or parts[-1:] == (...,):
        return f"list of {_words(parts[0])}"
    return f"[{', '.join(_words(part) for part in parts)}]"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return ""
    value = field.default.model_dump(exclude_defaults=True) if isinstance(field.default, BaseModel) else field.default
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{key}: {part}' for key, part in value.items())}}}`"
    return "null" if value is None else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
