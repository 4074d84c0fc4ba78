"""The chat template of a run: the configuration's, else the base's own."""

import json
from pathlib import Path

from assay_training.config.base import ConfigError, RunConfig

_NOT_THERE = "template: is missing, and {base} has none of its own (chat_template.jinja, or chat_template in {name})"
_CONFIG = "tokenizer_config.json"


def template_of(config: RunConfig, base: Path) -> str:
    """Return the text of the template that a run renders with.

    Args:
        config: the run's; its `template` goes first.
        base: the directory of the base, which may have a template of its own; of several that it names, `default`.

    Raises:
        ConfigError: neither has one.
    """
    if config.template is not None:
        return config.template.read_text()
    if (base / "chat_template.jinja").is_file():
        return (base / "chat_template.jinja").read_text()
    settings = base / _CONFIG
    own = json.loads(settings.read_text()).get("chat_template") if settings.is_file() else None
    if isinstance(own, list):
        own = next((of.get("template") for of in own if of.get("name") == "default"), None)
    if not isinstance(own, str):
        raise ConfigError(_NOT_THERE.format(base=base, name=_CONFIG) + "; name a Jinja file")
    return own
