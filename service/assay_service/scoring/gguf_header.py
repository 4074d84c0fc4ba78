"""Read the header of a GGUF file: its metadata, and where its tensors lie. Needs neither torch nor the gguf package.

The gguf package builds an object for every token of the vocabulary, which takes seconds, and reports a cut-off file as
an error of numpy. Values of tensors are read in `gguf_files`.
"""

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import BinaryIO

from assay_service.errors import StartError

Value = int | float | bool | str | None
Array = list[Value]

HEAD = "cls.output.weight"  # the head of llama.cpp's rerankers

# Types of tensors by their number in ggml.h: name, values in a block, bytes of a block.
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
}
# Metadata of fixed size by its number in ggml.h; 8 is a text, 9 an array.
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_ALIGNMENT = 32
# Longest text that is read; a longer one is a sign of a broken file, which would fill the memory.
_LONGEST_TEXT = 100_000_000


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a GGUF file.

    Attributes:
        shape: shape in torch's order.
        kind: number of its type, a key of `TYPES`.
        start: offset of its first byte in the file.
        size: number of its bytes.
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        metadata: metadata by key; an array is None here.
        arrays: the arrays that were asked for, by key.
        tensors: tensors by name.
    """

    path: Path
    metadata: Mapping[str, Value]
    arrays: Mapping[str, Array]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the architecture."""
        return str(self.metadata.get("general.architecture"))

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Return the names of the tensors' types, sorted."""
        return tuple(sorted({TYPES[tensor.kind][0] for tensor in self.tensors.values()}))

    def get_number(self, key: str) -> int | float | None:
        """Return a number that the metadata has under the architecture's prefix; None if there is none."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_gguf_header(path: Path, arrays: Collection[str] = ()) -> GgufHeader:
    """Read the header of a GGUF file, and check that the file is whole.

    Args:
        path: the file.
        arrays: keys of the arrays in the metadata that are read; the vocabulary is one, and reading it takes time.

    Raises:
        StartError: it is not a whole GGUF file, or a tensor has a type that is not read; the message names the tensor.
    """
    try:
        with path.open("rb") as stream:
            metadata, kept, entries = _read(stream, arrays)
            # A file without padding behind its header is cut off, which the sizes below show.
            alignment = metadata.get("general.alignment", _ALIGNMENT)
            if not isinstance(alignment, int) or alignment < 1:
                raise ValueError(f"general.alignment is {alignment!r}")
            start = -(-stream.tell() // alignment) * alignment
    except (OSError, ValueError, struct.error) as error:
        raise StartError(f"{path}: not a whole GGUF file ({error}); download or convert it again") from error
    tensors = {name: _place(path, name, start, entry) for name, entry in entries.items()}
    end = max((tensor.start + tensor.size for tensor in tensors.values()), default=start)
    if (missing := end - path.stat().st_size) > 0:
        raise StartError(f"{path}: the last {missing} bytes are missing; download or convert it again")
    return GgufHeader(path, metadata, kept, tensors)


_Entry = tuple[tuple[int, ...], int, int]


def _read(stream: BinaryIO, wanted: Collection[str]) -> tuple[dict[str, Value], dict[str, Array], dict[str, _Entry]]:
    """Return the metadata, the wanted arrays of it, and shape, type and offset of each tensor."""
    if stream.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, count, keys = _unpack(stream, "<IQQ")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}; read are {' and '.join(map(str, _VERSIONS))}")
    metadata: dict[str, Value] = {}
    arrays: dict[str, Array] = {}
    for _ in range(keys):
        key = _read_text(stream)
        (kind,) = _unpack(stream, "<I")
        if kind == _ARRAY and key in wanted:
            arrays[key] = _read_array(stream)
        else:
            metadata[key] = _read_value(stream, kind)
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        name = _read_text(stream)
        (dimensions,) = _unpack(stream, "<I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = _unpack(stream, f"<{dimensions}Q")
        kind, offset = _unpack(stream, "<IQ")
        if name in entries:
            raise ValueError(f"two tensors are called {name}")
        entries[name] = tuple(reversed(shape)), kind, offset
    return metadata, arrays, entries


def _read_value(stream: BinaryIO, kind: int) -> Value:
    """Return one value of the metadata; None for an array, which is passed over."""
    if kind in _FORMATS:
        return _unpack(stream, _FORMATS[kind])[0]
    if kind == _TEXT:
        return _read_text(stream)
    if kind != _ARRAY:
        raise ValueError(f"metadata of type {kind}")
    inner, count = _unpack(stream, "<IQ")
    if inner in _FORMATS:
        stream.seek(struct.calcsize(_FORMATS[inner]) * count, 1)
        return None
    for _ in range(count):
        _read_value(stream, inner)
    return None


def _read_array(stream: BinaryIO) -> Array:
    inner, count = _unpack(stream, "<IQ")
    if inner == _ARRAY:
        raise ValueError("an array of arrays")
    return [_read_value(stream, inner) for _ in range(count)]


def _read_text(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "<Q")
    if length > _LONGEST_TEXT:
        raise ValueError(f"a text of {length} bytes")
    text = stream.read(length)
    if len(text) < length:
        raise ValueError("it ends within its header")
    return text.decode(errors="replace")


def _unpack(stream: BinaryIO, form: str) -> tuple[int, ...]:
    size = struct.calcsize(form)
    read = stream.read(size)
    if len(read) < size:
        raise ValueError("it ends within its header")
    return struct.unpack(form, read)


def _place(path: Path, name: str, start: int, entry: _Entry) -> GgufTensor:
    """Return a tensor with its place in the file."""
    shape, kind, offset = entry
    if kind not in TYPES:
        known = ", ".join(type_name for type_name, _, _ in TYPES.values())
        raise StartError(f"{path}: {name} has ggml type {kind}, which is not read; convert it to one of {known}")
    type_name, values, size = TYPES[kind]
    if shape[-1] % values:
        raise StartError(
            f"{path}: {name} has {shape[-1]} columns, but {type_name} stores {values} at once; convert it again"
        )
    return GgufTensor(shape, kind, start + offset, prod(shape) // values * size)
