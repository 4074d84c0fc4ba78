"""Load the tokenizers and templates of policies, which read the rendered text that compatible wires receive."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from assay_service.compat_settings import WireName
from assay_service.errors import Problems
from assay_service.scoring import files, tokenizer
from assay_service.scoring.chat_environment import TemplateRenderer
from assay_service.scoring.template import Template
from assay_service.scoring.template_files import read_template
from assay_service.scoring.token_reader import TokenReader
from assay_service.scoring.transcript import build_transcript
from assay_service.settings import Settings


def load_policies(settings: Settings) -> Mapping[WireName, TokenReader]:
    """Return the readers of the policies that wires declare, by name of the wire; no weights are read.

    Raises:
        StartError: a directory has no readable tokenizer or no chat template; the error names the key and the file.
    """
    readers: dict[Path, TokenReader] = {}  # wires that declare the same directory share its reader
    policies: dict[WireName, TokenReader] = {}
    problems = Problems()
    wires: tuple[WireName, ...] = get_args(WireName)
    for wire in wires:
        declared = settings.compat.get_wire(wire).policy
        if declared is None:
            continue
        directory, key = files.place(declared, settings.directory), f"compat.wires.{wire}.policy"
        with problems.collected(key):
            if directory not in readers:
                readers[directory] = _load(directory, key)
            policies[wire] = readers[directory]
    problems.raise_any()
    return policies


def _load(directory: Path, key: str) -> TokenReader:
    loaded = tokenizer.load(directory)
    template = Template(TemplateRenderer(loaded), read_template(None, directory, directory))
    return TokenReader(key, tokenizer.hash_file(directory), loaded, build_transcript(template, loaded))
