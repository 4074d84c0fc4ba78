"""Export the service's public names: `create_app` builds the application, `read_settings` reads its configuration.

A name is imported when it is first used, so that `assay --help` and configuration errors need not wait for torch.
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
    """Import a public name when it is first used, and return it.

    Raises:
        AttributeError: the package has no such public name.
    """
    if name == "__version__":
        return version("assay-rewards")
    if name in _MODULES:
        # Kept in the module's globals, so that this function runs once for each name.
        globals()[name] = value = getattr(import_module(f"assay_service.{_MODULES[name]}"), name)
        return value
    raise AttributeError(f"module 'assay_service' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
