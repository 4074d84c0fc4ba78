"""Find the files of one signal and read their JSON, before torch is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_service.errors import Problems, StartError
from assay_service.preset_keys import check_fits
from assay_service.scoring import files, manifest
from assay_service.scoring.architectures import read_class
from assay_service.scoring.head_layouts import HeadLayout, recognize_layout
from assay_service.scoring.lineage import check_lineage
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.names import read_shapes
from assay_service.scoring.template_files import add_bos, read_template
from assay_service.signal_settings import SignalSettings


@dataclass(frozen=True, slots=True)
class SignalFiles:
    """The files of a signal, and the content of their JSON.

    Attributes:
        base: directory of the base.
        model: name of the base in the configuration or in the adapter.
        revision: commit, tag or branch of a hub id; None for a directory.
        adapters: directories of LoRA adapters in the order in which they are applied; empty for the base's own head.
        tokenizer: directory of the tokenizer's files.
        config: the base's `config.json`.
        claims: the checkpoint's manifest.
        is_classifier: True if the checkpoint was trained as transformers' classifier of its architecture.
    """

    base: Path
    model: str
    revision: str | None
    adapters: tuple[Path, ...]
    tokenizer: Path
    config: Mapping[str, Any]
    claims: Manifest
    is_classifier: bool

    @property
    def adapter(self) -> Path | None:
        """Return the directory of the adapter that has the head; None where the base has the head."""
        return self.adapters[-1] if self.adapters else None

    @property
    def checkpoint(self) -> Path:
        """Return the directory that has the head: the last adapter's, else the base's."""
        return self.adapter or self.base


def locate(settings: SignalSettings, relative_to: Path) -> SignalFiles:
    """Find the files of a signal and read their JSON.

    Args:
        settings: settings of the signal.
        relative_to: folder at which relative paths start.

    Raises:
        StartError: a key does not lead to a checkpoint; the error lists all such keys.
    """
    problems = Problems()
    declared = [settings.adapter] if isinstance(settings.adapter, str) else settings.adapter or []
    adapters: tuple[Path, ...] = ()
    configs: list[dict[str, Any]] = []
    with problems.collected("adapter"):
        adapters = tuple(files.resolve(adapter, None, relative_to) for adapter in declared)
        configs = [files.read_config(adapter, files.ADAPTER_CONFIG) for adapter in adapters]
        for adapter, adapter_config in zip(adapters, configs, strict=True):
            files.refuse_code(adapter_config, adapter / files.ADAPTER_CONFIG)
    if settings.base is None:
        problems.raise_any()  # without the adapter's files, nothing names the base
    with problems.collected("base"):
        reference, revision, base = _find_base(settings, configs, adapters, relative_to)
        config = files.read_config(base)
        if settings.preset is not None:
            check_fits(settings.preset, base, config)
        files.refuse_code(config, base / "config.json", ignored=settings.code == "ignore")
    problems.raise_any()
    with problems.collected():
        claims = manifest.read(adapters[-1] if adapters else base)
    with problems.collected():
        check_lineage(adapters, base, reference if revision else None, settings.adapter_base)
    with problems.collected("base"):
        tokenizer = files.find_tokenizer_directory(base, *adapters)
    problems.raise_any()
    return SignalFiles(
        base=base,
        model=reference,
        revision=revision,
        adapters=adapters,
        tokenizer=tokenizer,
        config=config,
        claims=claims,
        is_classifier=_is_classifier(config, configs),
    )


def _find_base(
    settings: SignalSettings, adapter_configs: Sequence[Mapping[str, Any]], adapters: Sequence[Path], relative_to: Path
) -> tuple[str, str | None, Path]:
    """Return name, revision and directory of the base, which is declared or else named by the first adapter."""
    if settings.base is not None:
        directory = files.resolve(settings.base, settings.revision, relative_to, settings.gguf_file)
        if (directory / "config.json").is_file() and (directory / files.ADAPTER_CONFIG).is_file():
            raise StartError(
                f"{directory}: the base's directory holds an {files.ADAPTER_CONFIG}; declare the adapter as `adapter`"
            )
        return settings.base, settings.revision, directory
    reference = str(adapter_configs[0].get("base_model_name_or_path") or "")
    if not reference:
        raise StartError(f"declare it; {adapters[0] / files.ADAPTER_CONFIG} has no base_model_name_or_path")
    if reference.startswith(files.PACKAGE_SCHEME):  # resolving it would import a module that a checkpoint names
        raise StartError(f"declare `base: {reference}`; a package is imported only if the configuration names it")
    # PEFT writes the path that the trainer was given. It is relative to the trainer's working directory, or to the
    # adapter if the adapter was moved together with its base.
    starts = [start for start in (adapters[0], relative_to) if files.place(reference, start).is_dir()]
    revision = settings.revision or (None if starts else adapter_configs[0].get("revision"))
    try:
        start = starts[0] if starts else adapters[0]
        return reference, revision, files.resolve(reference, revision, start, settings.gguf_file)
    except StartError as error:
        raise StartError(
            f"declare it; the adapter's base_model_name_or_path does not lead to a base: {error.message}"
        ) from error


def _is_classifier(config: Mapping[str, Any], adapter_configs: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if `config.json` or the last adapter says that transformers' classifier was trained."""
    architecture = read_class(config)
    if any(name.rpartition(".")[2] == architecture for name in files.list_code_classes(config)):
        architecture = ""  # a class of the checkpoint's own, whatever its name
    is_adapter_classifier = bool(adapter_configs) and adapter_configs[-1].get("task_type") == "SEQ_CLS"
    return architecture.endswith("ForSequenceClassification") or is_adapter_classifier


def read_declared_template(
    settings: SignalSettings, located: SignalFiles, relative_to: Path, problems: Problems
) -> str:
    """Return the chat template of the signal; "" if none can be read, so that later checks go on."""
    template, declared = "", None
    with problems.collected("template"):
        declared = None if settings.template is None else files.place(settings.template, relative_to)
    with problems.collected():
        template = read_template(declared, located.checkpoint, located.tokenizer, settings.template_name)
    # Not added to an empty template, whose problem is collected already.
    return add_bos(template) if template and settings.bos == "add" else template


def find_layout(settings: SignalSettings, located: SignalFiles) -> HeadLayout | None:
    """Return the parts of a head with a gating network; None for a signal that reads another head."""
    weights = files.list_weight_files(located.base, settings.gguf_file)
    if settings.gguf_file is not None:  # llama.cpp's format has no place for such a head
        return None
    # Read before the next check, so that damaged weights are a problem whatever head is declared.
    shapes = read_shapes(weights)
    if located.adapters or (settings.head is not None and settings.head.gate is None):
        return None
    return recognize_layout(shapes, located.config, located.base)
