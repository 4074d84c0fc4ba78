"""Find the chat template of a signal: a declared file, or one of those in the files of its checkpoint."""

import json
from pathlib import Path

from assay_service.errors import StartError

_DEFAULT = "default"
NO_TEMPLATE = "has no chat template"


def read_template(declared: Path | None, checkpoint: Path, tokenizer: Path, name: str | None = None) -> str:
    """Return the Jinja source of a signal's chat template.

    Args:
        declared: file that the configuration names; None takes the checkpoint's own template.
        checkpoint: directory of the adapter or base; its files come first.
        tokenizer: directory of the tokenizer, whose `tokenizer_config.json` may hold templates.
        name: name of one of the checkpoint's templates; None takes the one called "default", as transformers does.
            `chat_template.jinja` and a single text in `tokenizer_config.json` have this name.

    Raises:
        StartError: the declared file is missing, or the checkpoint has no template of this name.
    """
    if declared is not None:
        if name is not None:
            raise StartError("template, template_name: declare only one of them")
        if not declared.is_file():
            raise StartError(f"template: {declared}: no such file; declare the path of a Jinja file")
        return declared.read_text(encoding="utf-8")
    templates = _read_configured(tokenizer / "tokenizer_config.json")
    for directory in dict.fromkeys((tokenizer, checkpoint)):
        files = {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
        if (single := directory / "chat_template.jinja").is_file():
            files[_DEFAULT] = single
        templates |= {stem: path.read_text(encoding="utf-8") for stem, path in files.items()}
    if not templates:
        raise StartError(f"template: {checkpoint} {NO_TEMPLATE}; declare the path of a Jinja file")
    if (name or _DEFAULT) not in templates:
        names = ", ".join(sorted(templates))
        missing = "no chat template is called 'default'" if name is None else f"no chat template is called {name!r}"
        raise StartError(f"template_name: {missing}; declare one of: {names}")
    return templates[name or _DEFAULT]


def add_bos(template: str) -> str:
    """Return a template that prints the tokenizer's BOS first. One that prints it already then prints two."""
    return "{{ bos_token }}" + template


def _read_configured(path: Path) -> dict[str, str]:
    """Return the chat templates of a `tokenizer_config.json`, keyed by name; none if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        own = json.loads(path.read_bytes()).get("chat_template")
        named = {entry["name"]: entry["template"] for entry in own} if isinstance(own, list) else {_DEFAULT: own}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise StartError(
            f"{path}: chat_template must be a text or a list of `name` and `template`; correct it"
        ) from error
    return {name: template for name, template in named.items() if isinstance(template, str)}
