"""Decide what a preset gives to a signal, a conversion and a report; pure but for reading the preset.

A preset gives defaults for the keys of a signal. A key that the user declares takes its place.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assay_service.errors import StartError
from assay_service.preset import COMMIT_PATTERN, Golden, Preset, PresetUse, Rendering, list_names, place_template, read
from assay_service.scoring.architectures import read_class
from assay_service.scoring.manifest import FILE_NAME

# Keys that contradict each other: the user's own takes the place of both. A gate goes with any output.
_RIVALS: Mapping[str, tuple[str, ...]] = {
    "template": ("template_name",),
    "template_name": ("template",),
    "head": ("output",),
    "output": ("head",),
    "mean": ("moments",),
    "std": ("moments",),
    "moments": ("mean", "std"),
    "score_position": ("pad_token_id", "steps", "aggregate"),
}


# Keys that leave the logit of a conversation as it is, so that golden rows hold with any value.
_KEEP_LOGITS = frozenset(
    {"kind", "dtype", "compute", "device", "engine", "tensor_parallel_size", "max_length", "mean", "std", "moments"}
    | {"unfinished", "dropped_content", "control_tokens"}
)
# Keys that leave text and ids as they are, so that golden renderings hold with any value.
_KEEP_IDS = _KEEP_LOGITS | {"output", "aggregate", "code"}


def merge(name: str, preset: Preset, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a signal: the declared ones, and those of the preset that take no declared key's place.

    Without a declared `base`, the preset's hub id is the base: at the preset's revision, or at `main` if it has none.

    Args:
        name: name of the preset.
        preset: the preset.
        declared: keys of the signal in the configuration; a key that is None counts as not declared.

    Raises:
        ValueError: the files at the hub must be converted first; the message says how.
    """
    own = {key: value for key, value in declared.items() if value is not None}
    defaults = dict(preset.signal)
    if "template" in defaults:
        defaults["template"] = str(place_template(defaults["template"]))
    if "base" not in own:
        if preset.convert is not None:
            raise ValueError(f"base: {explain_conversion(name, preset)}")
        defaults |= {"base": preset.model, "revision": preset.revision or "main"}
    replaced = {rival for key in own if own[key] != defaults.get(key) for rival in _RIVALS.get(key, ())}
    if "output" in own and "gate" in defaults.get("head", {}):
        replaced.discard("head")
    return {**{key: value for key, value in defaults.items() if key not in replaced}, **own}


def explain_conversion(name: str, preset: Preset) -> str:
    """Return why published files must be converted, and the commands that convert and serve them."""
    assert preset.convert is not None
    base = "" if preset.convert.base is None else f" --base DIRECTORY_OF_{preset.convert.base.rpartition('/')[2]}"
    return (
        f"the files of {preset.model} must be converted: {preset.convert.reason}. Download them "
        f"(hf download {preset.model} --local-dir SOURCE), run `assay convert SOURCE OUT --preset {name}{base}`, and "
        f"declare OUT as `base` (assay serve OUT --preset {name})"
    )


def check_fits(name: str, directory: Path, config: Mapping[str, Any]) -> None:
    """Refuse a base that a preset cannot be for: of another architecture, or one that must be converted first.

    Args:
        name: name of the preset.
        directory: directory of the base.
        config: its `config.json`.

    Raises:
        StartError: the preset is not for this base; the message says what to do.
    """
    preset = read(name)
    if preset.convert is not None and _is_as_published(preset, directory, config):
        raise StartError(f"{directory}: {explain_conversion(name, preset)}")
    if (found := config.get("model_type")) != preset.model_type:
        raise StartError(
            f"{directory}: config.json has model_type {found!r}, but the preset {name!r} is for {preset.model}, which "
            f"has {preset.model_type!r}; declare the preset of this checkpoint (`assay presets` prints all), or "
            "remove `preset` and declare the keys that `assay inspect` asks for"
        )


def _is_as_published(preset: Preset, directory: Path, config: Mapping[str, Any]) -> bool:
    """Return whether the files that a preset says to convert have not been converted."""
    # A foreign class can be served by itself, but without what the conversion adds, such as Athene's last token. Every
    # conversion of one writes a manifest, also of Starling-RM-34B, which keeps the class.
    is_foreign = preset.shape != "classifier" and read_class(config) == preset.architecture
    converted = (directory / FILE_NAME).is_file()
    has_weights = any(path.suffix in {".safetensors", ".gguf"} for path in directory.iterdir())
    return not has_weights or (is_foreign and not converted)


def explain_other_class(use: PresetUse, config: Mapping[str, Any]) -> str:
    """Return why a base is probably not the one that a preset is for: another class; "" if it may be."""
    preset, found = read(use.name), read_class(config)
    if preset.convert is not None or found == preset.architecture:  # a conversion changes the class
        return ""
    return (
        f"preset: config.json names the class {found or 'of no model'}, but {preset.model}, which the preset "
        f"{use.name!r} is for, has {preset.architecture}; check that this is the right preset"
    )


def fill_conversion(name: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `assay convert`, with those of a preset in place of the undeclared ones.

    Args:
        name: name of the preset.
        declared: options by name, with None for those that are not declared.

    Raises:
        StartError: there is no such preset.
    """
    preset = read(name)
    known = {key: value for key, value in preset.signal.items() if key in declared}
    known["head"] = None if preset.convert is None else preset.convert.head
    if "template" in known:
        known["template"] = place_template(known["template"])
    return {key: known.get(key) if value is None else value for key, value in declared.items()}


def find_matching(directory: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the presets that a checkpoint seems to be made for: of its architecture, and named like its directory.

    The directory is a download with the model's own name, or a snapshot in the hub's cache. No file of a checkpoint
    says its hub id.

    Args:
        directory: directory of the checkpoint.
        config: its `config.json`.
    """
    parts = directory.parts
    cached = [part.removeprefix("models--").replace("--", "/") for part in parts if part.startswith("models--")]
    for name in list_names():
        preset = read(name)
        is_named = preset.model in cached or directory.name.lower() in {preset.model.rpartition("/")[2].lower(), name}
        if is_named and config.get("model_type") == preset.model_type:
            yield name


def find_golden(use: PresetUse) -> Golden | None:
    """Return the published logits that a signal must give; None where there are none, or a changed key changes them."""
    golden = read(use.name).golden
    return golden if isinstance(golden, Golden) and golden.rows and _KEEP_LOGITS.issuperset(use.changed) else None


def find_renderings(use: PresetUse) -> tuple[Rendering, ...]:
    """Return the conversations that a signal must render as recorded; none where a changed key changes the ids."""
    return read(use.name).renderings if _KEEP_IDS.issuperset(use.changed) else ()


def list_warnings(use: PresetUse, config: Mapping[str, Any], revision: str | None, base: Path) -> list[str]:
    """Return what a user of a preset must know before relying on a score.

    Args:
        use: the preset, and the keys that are changed.
        config: `config.json` of the base.
        revision: commit, tag or branch of a hub id; None for a directory.
        base: directory of the base, which the hub's cache names by its commit.
    """
    preset, name = read(use.name), use.name
    warnings = [other] if (other := explain_other_class(use, config)) else []
    if revision is not None and not re.fullmatch(COMMIT_PATTERN, revision):
        warnings.append(
            f"preset {name}: {revision} of {preset.model} is the commit {base.name} at this start. Scores may change "
            f"with a later one: declare `revision: {base.name}` to keep them"
        )
    warnings += _list_golden_warnings(use, preset)
    if preset.unverified:
        warnings.append(f"preset {name}: no public text states {', '.join(preset.unverified)}; check them")
    return warnings


def _list_golden_warnings(use: PresetUse, preset: Preset) -> list[str]:
    """Return what nobody has checked about the scores of a preset, and which checks a changed key prevents."""
    name, warnings = use.name, []
    if use.golden == "not run":
        warnings.append(
            f"preset {name}: no golden row of it was ever run: its keys come from the sources in docs/presets.md, and "
            "nobody has compared a score. Compare one with the code of the model card"
        )
    elif use.golden == "rendering":
        warnings.append(
            f"preset {name}: no golden score of it was ever run: text and ids of a conversation are recorded, but "
            "nobody has compared a score. Compare one with the code of the model card"
        )
    elif find_golden(use) is None:
        others = ", ".join(key for key in use.changed if key not in _KEEP_LOGITS)
        warnings.append(f"preset {name}: its golden rows are not checked, because {others} is changed")
    elif use.golden == "published":
        warnings.append(
            f"preset {name}: its golden rows are the scores that public text prints; Assay never ran them before "
            "this start"
        )
    if preset.renderings and not find_renderings(use):
        others = ", ".join(key for key in use.changed if key not in _KEEP_IDS)
        warnings.append(f"preset {name}: its golden renderings are not checked, because {others} is changed")
    return warnings
