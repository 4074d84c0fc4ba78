"""Find the chat template of a run: the configuration's, else the base's own."""

from pathlib import Path

from assay_service.errors import StartError
from assay_service.scoring.template import read_template
from assay_training.config.base import ConfigError, RunConfig


def template_of(config: RunConfig, base: Path) -> str:
    """Return the text of the template that a run renders with.

    Args:
        config: the run's; its `template` goes first.
        base: the directory of the base, whose own template is taken as the service takes it.

    Raises:
        ConfigError: neither has one.
    """
    try:
        return read_template(config.template, base, base)
    except StartError as error:
        raise ConfigError(f"template: declare the path of a Jinja file; of the base: {error.message}") from error
