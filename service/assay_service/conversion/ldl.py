"""Convert LDL-Reward, whose base is in safetensors files and whose head is in two pickles beside them."""

from pathlib import Path

import torch

from assay_service.conversion import source, write
from assay_service.conversion.plan import plan
from assay_service.conversion.prepare import Request, build_base, find_tokenizer
from assay_service.errors import StartError
from assay_service.scoring import files
from assay_service.scoring.architectures import read_architecture
from assay_service.scoring.head_layouts import recognize_layout
from assay_service.scoring.template_files import read_template

# Modules of the class, each with its own pickle ([LDL], `save_pretrained`).
_PARTS = ("regression_layer", "gating_layer")


def is_ldl(directory: Path) -> bool:
    """Return whether a directory has one of the two pickles."""
    return any((directory / f"{part}.pt").is_file() for part in _PARTS)


def convert_ldl(request: Request, out: Path) -> list[str]:
    """Convert the checkpoint into the directory `out`, and return what was done, one line each.

    Raises:
        StartError: a tensor is missing, unknown or of the wrong shape, or `out` cannot be written.
    """
    where = request.source
    if request.head is not None:
        raise StartError(f"{where}: is LDL-Reward, whose head is in {_PARTS[0]}.pt and {_PARTS[1]}.pt; remove --head")
    config = {key: value for key, value in files.read_config(where).items() if key != "auto_map"}
    architecture = read_architecture(config, where)
    head = _read_head(where)
    # The weights of the base only; the two pickles hold the head.
    paths = source.find_weights(where, "model")
    shapes = {name: tuple(t.shape) for path in paths for name, t in source.read_tensors(path).items()}
    # Only for its checks: a head of another form is refused before the base is copied.
    recognize_layout({**shapes, **{name: tuple(t.shape) for name, t in head.items()}}, config, where)
    planned = plan(shapes, build_base(config), "", "", architecture, where)
    tokenizer = find_tokenizer(request)
    template = None if request.template is None else read_template(request.template, where, tokenizer)
    # Its code reads the token before the first pad, which without pads is the last one.
    position = request.claims.score_position or "last_token"
    claims = request.claims.model_copy(update={"score_position": position})
    with write.write_checkpoint(out, config, tokenizer, template, claims) as writer:
        writer.add_files(map(source.read_tensors, paths), planned.targets)
        for name, tensor in head.items():
            writer.add(name, tensor)
    return [f"{part}.pt: written into the weights as {part}.network" for part in _PARTS]


def _read_head(where: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of both pickles under the names that they have in the class."""
    head: dict[str, torch.Tensor] = {}
    for part in _PARTS:
        path = where / f"{part}.pt"
        if not path.is_file():
            raise StartError(f"{path}: no such file, and LDL-Reward's head needs it; download the checkpoint again")
        head |= {f"{part}.{name}": tensor for name, tensor in source.read_tensors(path).items()}
    return head
