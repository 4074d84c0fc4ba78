"""Assay's service in Python: `create_app` builds the application, `read_settings` reads its configuration.

Names are imported when they are first used, so that `assay --help` and configuration errors need not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assay_service.api.app import create_app
    from assay_service.errors import StartError
    from assay_service.settings import EMBEDDED, Settings, read_settings

    __version__: str

__all__ = ["EMBEDDED", "Settings", "StartError", "__version__", "create_app", "read_settings"]

_MODULES = {
    "EMBEDDED": "settings",
    "Settings": "settings",
    "StartError": "errors",
    "create_app": "api.app",
    "read_settings": "settings",
}


def __getattr__(name: str) -> object:
    """Return a public name, imported when it is first used."""
    if name == "__version__":
        return version("assay-rewards")
    if name in _MODULES:
        globals()[name] = found = getattr(import_module(f"assay_service.{_MODULES[name]}"), name)
        return found
    raise AttributeError(f"module 'assay_service' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
