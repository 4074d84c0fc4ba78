"""Read a signal that a request adds to a running service; none of its files may lie outside a declared directory.

A configuration file may name any path, hub id or package, because the operator wrote it. A request may not: it would
read files of the machine, send it to addresses, or import code.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from assay_service.errors import Problems, StartError
from assay_service.resolve import ResolvedSignal, read_resolved
from assay_service.scoring import files
from assay_service.settings import Settings

_INDEX = "model.safetensors.index.json"
# Keys that lead out of a directory whatever their value is.
_REFUSED = {
    "revision": "a request downloads nothing; download the model below admin_root, and give its directory as `base`",
    "engine": "vLLM starts processes of its own; declare the signal in the configuration file, and restart the service",
}


def read_added(name: str, declared: Mapping[str, Any], settings: Settings) -> ResolvedSignal:
    """Return a signal for which everything is decided that can be decided without its tensors.

    Args:
        name: name of the signal, which no signal or blend has.
        declared: keys of the signal, as in the configuration file; relative paths start at `admin_root`.
        settings: settings of the service, which declare `admin_root`.

    Raises:
        StartError: the signal cannot be served, or a path leads out of `admin_root`; the error lists all problems as
            those of a start.
    """
    assert settings.admin_root is not None  # without it, no request comes here
    root, problems = settings.find_path(settings.admin_root).resolve(), Problems()
    for problem in _find_ways_out(declared, root):  # before anything is opened
        problems.lines.append(f"signals.{name}: {problem}")
    problems.raise_any()
    added, resolved = read_resolved({"signals": {name: dict(declared)}}, root, None)
    try:
        Settings.model_validate(vars(settings) | {"signals": {**settings.signals, **added.signals}})
    except ValidationError as error:  # the signal alone is right, and does not go with the rest
        raise StartError(*(str(each["ctx"]["error"]) for each in error.errors(include_url=False))) from error
    return resolved[name]


def _find_ways_out(declared: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Yield a line for each key by which a signal would read anything outside `root`; wrong types come later."""
    for key, reason in _REFUSED.items():
        if declared.get(key) is not None and (key, declared[key]) != ("engine", "assay"):
            yield f"{key}: {reason}"
    base, adapter = declared.get("base"), declared.get("adapter")
    if base is None:
        yield "base: must be declared, because a request takes no base from a preset or an adapter; give its directory"
    adapters = adapter if isinstance(adapter, list) else [adapter]
    named = [("base", base), *(("adapter", each) for each in adapters), ("template", declared.get("template"))]
    places = [(key, path, _place(path, root)) for key, path in named if isinstance(path, str)]
    for key, path, place in places:
        if place is None:
            yield f"{key}: {path[:80]!r} does not lie below admin_root; put it there, and give its path from there"
    directories = [place for key, _, place in places if place is not None and key != "template"]
    gguf_file = declared.get("gguf_file")
    if isinstance(gguf_file, str) and gguf_file != Path(gguf_file).name:
        yield "gguf_file: must be the name of a file in `base`, without a directory"
    for directory in dict.fromkeys(directories):
        for link in _find_links_out(directory, root):
            yield f"{link}: leads out of admin_root; copy the file in place of the link"


def _place(path: str, root: Path) -> Path | None:
    """Return the place of a path with all links followed; None if it is outside `root`, or no place at all."""
    try:
        place = (root / Path(path).expanduser()).resolve()
    except (OSError, ValueError, RuntimeError):  # a long name, a null character, a loop of links, an unknown user
        return None
    # Packages and hub ids are not distinguished: they are paths that do not exist, which a later error names.
    return place if place.is_relative_to(root) and not path.startswith(files.PACKAGE_SCHEME) else None


def _find_links_out(directory: Path, root: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint that lie elsewhere: by a link, or by the index of its shards."""
    if not directory.is_dir():
        return
    try:
        listed = [*directory.iterdir(), *directory.glob("additional_chat_templates/*")]
    except OSError as error:
        raise StartError(f"{directory}: cannot be read: {error.strerror}; check its permissions") from error
    if _INDEX in {path.name for path in listed} and _place(str(directory / _INDEX), root) is not None:
        shards = files.read_config(directory, _INDEX).get("weight_map", {})
        listed += [directory / str(shard) for shard in dict.fromkeys(map(str, shards.values()))]
    for path in listed:
        if _place(str(path), root) is None:
            yield path
