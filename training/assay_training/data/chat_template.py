"""Find the chat template of a run: the one in its configuration, else the one of the base."""

from pathlib import Path

from assay_service.errors import StartError
from assay_service.scoring.template_files import read_template
from assay_training.config.base import ConfigError, RunConfig


def find_template(config: RunConfig, base: Path) -> str:
    """Return the text of the template that a run renders with.

    Args:
        config: configuration of the run; its `template` goes before the base's own.
        base: directory of the base, from which the service would read the same template.

    Raises:
        ConfigError: neither has a template.
    """
    try:
        return read_template(config.template, base, base)
    except StartError as error:
        raise ConfigError(
            f"template: declare the path of a Jinja file; the base's cannot be used: {error.message}"
        ) from error
