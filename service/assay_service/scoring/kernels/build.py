"""Find the C++ kernels for CPUs, or build them once for an installation, and load them once in a process.

A wheel may have them (`make wheel`). Else they are in the cache, and else a compiler builds them into it.

The kernels compute products, norms and attention with oneDNN's small-matrix kernels, which torch contains. Their result
for a row does not depend on the rows beside it or on the number of rows. They are faster than torch's operators.
They need AVX2 or AVX-512. Without these or a compiler, and for other devices and dtypes, torch's own operators are used
(see `row_invariant.py`).
"""

import errno
import functools
import hashlib
import logging
import platform
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

from assay_service.scoring.atomic import write_atomically
from assay_service.scoring.cache import find_cache_directory

_FILES = sorted((Path(__file__).parent / "native").iterdir())
# Where a wheel has its kernels, in a directory named by their torch. A checkout and a pure wheel do not have it.
_PACKAGED = Path(__file__).parent / "built"

# Not `-march=native`: a library built on one machine (into an image or a shared home) must run on others as well.
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
# With AVX512-BF16, a conversion to bf16 is one instruction.
_KINDS = (_AVX2, _AVX512, (*_AVX512, "-mavx512bf16"))

# A compiler that fuses a product and a sum of its own accord rounds once instead of twice, on some CPUs only.
_FLAGS = ("-O3", "-ffp-contract=off", "-fopenmp")

_log = logging.getLogger("assay")
_start_log = logging.getLogger("assay.start")

_SLOWER = "torch's slower operators are used instead"


def load_or_explain(dtype: torch.dtype, device: torch.device) -> str | None:
    """Load the kernels into `torch.ops.assay` and return None, or return why they cannot be used.

    Args:
        dtype: dtype of the base.
        device: device of the base.
    """
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return f"Assay has none for {spell_dtype(dtype)} on {device.type}"
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]
        return "they need oneDNN, which is missing or switched off"
    return _load() or _try_dtype(dtype)


@functools.cache
def _load() -> str | None:
    """Load the kernels once in a process, built if needed; return why that failed, or None."""
    flags = _choose_flags()
    if flags is None:
        return "they need a CPU with AVX2 or AVX-512"
    if _load_packaged(flags):
        return None
    try:
        library = _find_or_build_library(flags)
        try:
            _load_library(library)
        except OSError:  # a cached library of another installation of the compiler or its libraries: build it again
            # Removed, because its name says that it fits.
            library.unlink()
            _load_library(_find_or_build_library(flags))
    except (subprocess.CalledProcessError, OSError) as error:
        reason = _explain_failed_build(error)
        _log.warning("no CPU kernels; %s: %s", _SLOWER, reason)
        return reason
    return None


def _choose_flags() -> list[str] | None:
    """Return the flags of the fastest kind of kernels that this CPU can run; None if it can run none."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith(("AVX2", "AVX512")):
        return None
    # torch.cpu has no public function for this.
    wide = capability.startswith("AVX512")
    return [*_FLAGS, *_KINDS[1 + torch.cpu._is_avx512_bf16_supported() if wide else 0]]


def _load_packaged(flags: list[str]) -> bool:
    """Load the wheel's kernels if they fit; return whether they are loaded, and log why not if there are any."""
    found = find_packaged(flags, _PACKAGED)
    if isinstance(found, Path):
        try:
            _load_library(found)
        except OSError as error:  # for example, this system's glibc is older than that of the build
            found = f"{found} cannot be loaded ({error})"
        else:
            return True
    if found is not None:
        _start_log.warning("the CPU kernels of the wheel are not used: %s", found)
    return False


def find_packaged(flags: list[str], directory: Path) -> Path | str | None:
    """Return the kernels of a wheel that fit these sources, flags and this torch, or why none does.

    Args:
        flags: flags of the compiler, which name a kind of CPU.
        directory: directory of the wheel's kernels, with one for their version of torch in it; it need not exist.

    Returns:
        The path, a reason, or None if the wheel has no kernels at all.
    """
    fitting = directory / torch.__version__ / _name_library(flags)
    if fitting.is_file():
        return fitting
    torches = sorted({path.parent.name for path in directory.glob("*/*.so")})
    if not torches:
        return None
    if torch.__version__ in torches:
        return "they were built from other sources"
    return f"they were built for torch {', '.join(torches)}, and this is torch {torch.__version__}"


def build_all() -> list[Path]:
    """Build the kernels for every kind of x86-64 CPU that can use them, and return their paths in the cache.

    This machine's own CPU does not matter. `service/wheel/kernels.py` puts the files into a wheel.

    Raises:
        CalledProcessError: the compiler has failed.
        OSError: there is no compiler, or the cache cannot be written.
    """
    return [_find_or_build_library([*_FLAGS, *kind]) for kind in _KINDS]


def _load_library(library: Path) -> None:
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]


def _explain_failed_build(error: subprocess.CalledProcessError | OSError) -> str:
    """Return why the kernels could not be built, and what to do about it."""
    if isinstance(error, subprocess.CalledProcessError):
        printed = " ".join(error.stderr.split())[:2000] or "nothing"
        return f"they could not be built: {error.cmd[0]} returned {error.returncode} and printed {printed}"
    if isinstance(error, FileNotFoundError) and error.filename == _find_compiler():
        return f"they could not be built: the C++ compiler {error.filename} is missing; install g++, or set CXX"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.ENOENT, errno.ENOTDIR):
        return f"they could not be built: {error}; set XDG_CACHE_HOME to a writable directory"
    return f"they could not be built or loaded: {error}"


def _find_compiler() -> str:
    """Return the C++ compiler that torch would use, which CXX can set."""
    return str(cpp_extension.get_cxx_compiler())  # type: ignore[no-untyped-call]


def _name_library(flags: list[str]) -> str:
    """Return the file name of the kernels of these sources, flags and this torch."""
    # A library calls functions of torch, whose binary interface changes with its version.
    digest = hashlib.sha256(" ".join([torch.__version__, *flags]).encode())
    for path in _FILES:
        digest.update(path.read_bytes())
    return f"assay_native_{digest.hexdigest()[:16]}.so"


def _find_or_build_library(flags: list[str]) -> Path:
    """Return the path of the built kernels in the cache, and build them if needed.

    They are built if these sources were never built with these flags and this torch.
    """
    kept = find_cache_directory() / "kernels" / _name_library(flags)
    if not kept.is_file():
        _start_log.info("building the CPU kernels in %s; this happens once for an installation", kept.parent)
        # Not durable: a library that a crash of the machine has cut off cannot be loaded, and is then built again.
        with write_atomically(kept, durable=False) as fresh:
            _build(flags, fresh)
    return kept


def _build(flags: list[str], library: Path) -> None:
    """Compile all sources at the same time and link them to `library`."""
    sources = [path for path in _FILES if path.suffix == ".cpp"]
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    linked = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-lc10", "-ltorch_cpu"]
    compiler = [_find_compiler(), "-std=c++20", "-fPIC", *flags, *includes]
    objects = [library.with_name(f"{path.stem}.o") for path in sources]
    with ThreadPoolExecutor() as at_once:
        commands = [[*compiler, "-c", path, "-o", built] for path, built in zip(sources, objects, strict=True)]
        list(at_once.map(_run, commands))
    _run([compiler[0], "-shared", *objects, "-o", library, *linked])


def _run(command: Sequence[str | Path]) -> None:
    """Run a compiler command."""
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own compiler and sources


@functools.cache
def _try_dtype(dtype: torch.dtype) -> str | None:
    """Compute a small product; return oneDNN's reason if it has no kernel of this dtype for this CPU, or None."""
    ones = torch.ones(16, 32, dtype=dtype)
    try:
        torch.ops.assay.linear(ones, torch.ops.assay.pack(ones), None, 16)
    except RuntimeError as error:
        needed = ": it needs a CPU with AVX512-BF16 or AMX" if dtype == torch.bfloat16 else ""
        return f"oneDNN has no kernel for {spell_dtype(dtype)} on this CPU{needed} ({str(error).splitlines()[0]})"
    return None


def has_units(dtype: str, device: torch.device) -> bool:
    """Return whether a device has instructions for products in `dtype`; torch emulates those that it has not.

    Variables that make torch (`ATEN_CPU_CAPABILITY`) or oneDNN (`ONEDNN_MAX_CPU_ISA`) use fewer instructions count.
    """
    if dtype in ("float32", "int8") or device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    if dtype == "float16":
        return torch.cpu._is_amx_fp16_supported()
    # The CPU may have instructions that oneDNN must not use. Only a trial shows that.
    supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return supported and (_load() is not None or _try_dtype(torch.bfloat16) is None)


def explain_slow_dtype(compute: str, device: torch.device) -> str | None:
    """Return why a device is slow in some numbers and what to do; None if it is not known to be slow.

    Args:
        compute: numbers in which a base computes.
        device: device on which it computes.
    """
    if has_units(compute, device):
        return None
    units = "AVX512-BF16 or AMX" if compute == "bfloat16" else "AMX-FP16"
    return (
        f"this CPU has no instructions for {compute} ({units}), so torch emulates it: remove `compute`, or declare "
        "`compute: float32`, which is several times faster here, rounds less, and takes the same memory"
    )


def spell_dtype(dtype: torch.dtype) -> str:
    """Return the name of a dtype as configurations spell it."""
    return str(dtype).removeprefix("torch.")
