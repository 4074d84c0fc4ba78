"""What a checkpoint claims about itself: `assay.json`, written by training, read at load.

Everything that decides a score besides the weights is here, so that a checkpoint is served as it was trained
(scoring-traps 1, 5-7, 25). A field that is None is not claimed; the configuration must then declare it.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assay_service.errors import StartError
from assay_service.validation import SHA256_PATTERN, explain, key_of

FILE_NAME = "assay.json"

Kind = Literal["preference", "absolute"]
ScorePosition = Literal["last_token", "last_non_pad_id", "eos", "first_token", "pooler", "mean", "completion"]
EosPolicy = Literal["template", "append"]
Unfinished = Literal["score", "error"]
DroppedContent = Literal["error", "report"]
ControlTokenPolicy = Literal["error", "text"]
TokenTypes = Literal["zero", "second_after_sep"]


class GoldenRow(BaseModel):
    """A conversation and the logit that training saw for it, checked whenever the checkpoint is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: tuple[tuple[str, str], ...] = Field(description="(role, content) pairs, the last one the assistant's")
    finish_reason: Literal["stop", "length"] = "stop"
    logit: float = Field(allow_inf_nan=False)


class Manifest(BaseModel):
    """The claims of one checkpoint.

    Attributes:
        kind: what the logit means.
        base_sha256: SHA-256 of the base's weights, over its safetensors files.
        template_sha256: SHA-256 of the chat template's text.
        score_position: which tokens the head reads.
        eos: where the end of turn comes from.
        max_length: tokens of prompt and completion together.
        unfinished: whether a completion cut off by a length limit is scored or is an error.
        mean, std: of the logits over the training completions; for blends that standardise.
        golden: rows to recompute after loading.
        token_types: of bases that tell token types apart. A manifest without this key means "zero", because
            `assay train reward` trains so.
        pad_token_id: the id that `last_non_pad_id` skips.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind | None = None
    base_sha256: str | None = Field(None, pattern=SHA256_PATTERN)
    template_sha256: str | None = Field(None, pattern=SHA256_PATTERN)
    score_position: ScorePosition | None = None
    eos: EosPolicy | None = None
    max_length: int | None = Field(None, gt=0)
    unfinished: Unfinished | None = None
    mean: float | None = Field(None, allow_inf_nan=False)
    std: float | None = Field(None, gt=0, allow_inf_nan=False)
    golden: tuple[GoldenRow, ...] = ()
    token_types: TokenTypes | None = "zero"
    pad_token_id: int | None = Field(None, ge=0)


def read(directory: Path) -> Manifest:
    """The manifest in `directory`, or one that claims nothing where there is none.

    Raises:
        StartError: the file is there and is not a manifest.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return Manifest(token_types=None)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise StartError(*(f"{path}: {key_of(e['loc']) or 'the file'}: {explain(e)}" for e in errors)) from error


def write(manifest: Manifest, directory: Path) -> None:
    """Writes `manifest` into `directory`, leaving out what is not claimed."""
    (directory / FILE_NAME).write_text(manifest.model_dump_json(indent=1, exclude_none=True) + "\n")
