"""Read and write `assay.json`, in which training records how a checkpoint must be served.

It holds everything that decides a score besides the weights, so that a checkpoint is served as it was trained
(scoring-traps 1, 5-7, 25). A field that is None is not recorded; the configuration must then declare it.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assay_service.errors import StartError
from assay_service.scoring.atomic import write_atomically
from assay_service.scoring.compute import Compute
from assay_service.scoring.reading import Aggregate
from assay_service.scoring.reference import ReferenceHistogram
from assay_service.validation import SHA256_PATTERN, TAG_PATTERN, explain, format_key

FILE_NAME = "assay.json"

Kind = Literal["preference", "absolute"]
ScorePosition = Literal[
    "last_token",
    "last_non_pad_id",
    "eos",
    "first_token",
    "pooler",
    "mean_pooler",
    "mean",
    "completion",
    "completion_tokens",
    "steps",
]
EosPolicy = Literal["template", "append"]
Unfinished = Literal["score", "error"]
DroppedContent = Literal["error", "report"]
ControlTokenPolicy = Literal["error", "text"]
Reasoning = Literal["keep", "strip", "error"]
TokenTypes = Literal["zero", "second_after_sep"]

Tag = Annotated[str, Field(min_length=1, max_length=256, pattern=TAG_PATTERN)]
REASONING_TAGS: tuple[str, str] = ("<think>", "</think>")


class StepRules(BaseModel):
    """The rules by which a process reward model reads the steps of a completion.

    Attributes:
        delimiter: text that separates the steps in the completion that a client sends.
        token: text that is printed after each step; one token of the tokenizer.
        layout: "inline" if the assistant's turn holds all steps, and the head reads the token after each of them.
            "turns" if each step is a user's turn that `token` answers, and the head reads the token before the answer.
        between: text that is printed between `token` and the next step; only for "inline".
        tokenize: "together" if the whole text is tokenized once, "apart" if the prompt and each step are tokenized by
            themselves.
        strip: whether white space at the borders of a step is removed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    delimiter: str = Field(min_length=1)
    token: str = Field(min_length=1)
    layout: Literal["inline", "turns"] = "inline"
    between: str = ""
    tokenize: Literal["together", "apart"] = "together"
    strip: bool = False

    @model_validator(mode="after")
    def _check_layout(self) -> "StepRules":
        if self.layout == "turns" and (self.between or self.tokenize == "apart"):
            raise ValueError("layout: turns has no text between steps and tokenizes together; remove the other key")
        return self


class GoldenRow(BaseModel):
    """A conversation and its logit in training, checked whenever the checkpoint is loaded.

    Attributes:
        messages: pairs of role and content; the last one is the assistant's.
        finish_reason: "stop" for a finished completion, "length" for one that was cut off.
        logit: logit of the conversation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: tuple[tuple[str, str], ...] = Field(description="(role, content) pairs, the last one the assistant's")
    finish_reason: Literal["stop", "length"] = "stop"
    logit: float = Field(allow_inf_nan=False)


class Output(BaseModel):
    """The record of one output of a head that has several.

    Attributes:
        name: name of the output.
        kind: meaning of its logit.
        mean, std: mean and standard deviation of its logits over its training completions.
        golden: rows with its logits, to recompute after loading.
        reference: distribution of its logits on sample texts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    kind: Kind
    mean: float = Field(allow_inf_nan=False)
    std: float = Field(gt=0, allow_inf_nan=False)
    golden: tuple[GoldenRow, ...] = ()
    reference: ReferenceHistogram | None = None


# Unknown keys are refused: a newer version may record something that changes scores.
class Manifest(BaseModel):
    """The record of one checkpoint.

    Attributes:
        kind: meaning of the logit.
        base_sha256: SHA-256 of the base's weights, over its safetensors files.
        template_sha256: SHA-256 of the chat template's text.
        score_position: position or span of tokens that the head reads.
        eos: source of the end of turn.
        max_length: largest number of tokens of prompt and completion together.
        unfinished: whether a completion cut off by a length limit is scored or refused.
        mean, std: mean and standard deviation of the logits over the training completions, or over the sample texts of
            `assay calibrate`; for blends that standardise.
        golden: rows to recompute after loading.
        token_types: token types, for bases that distinguish them. A manifest without this key means "zero", because
            `assay train reward` trains so.
        pad_token_id: token id that `last_non_pad_id` skips.
        reasoning: treatment of the reasoning of completions. A manifest without this key means "keep".
        reasoning_tags: tags that enclose reasoning; "keep" does not read them.
        steps: rules by which steps are read, for the score position "steps".
        aggregate: rule that makes one logit of those of the steps.
        compute: numbers in which the base must compute.
        reference: distribution of the logits on sample texts, from `assay calibrate`.
        outputs: outputs of the head, in the order of its rows; empty for a head with one. Kind, moments, golden rows
            and reference of such a checkpoint are those of its outputs.
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
    reasoning: Reasoning | None = None
    reasoning_tags: tuple[Tag, Tag] | None = None
    steps: StepRules | None = None
    aggregate: Aggregate | None = None
    compute: Compute | None = None
    reference: ReferenceHistogram | None = None
    outputs: tuple[Output, ...] = ()


def read(directory: Path) -> Manifest:
    """Return the manifest in `directory`, or an empty one if the file does not exist.

    Raises:
        StartError: the file exists and is not a manifest.
    """
    path = directory / FILE_NAME
    if not path.is_file():  # a checkpoint of another trainer, whose token types are unknown
        return Manifest(token_types=None)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise StartError(*(f"{path}: {format_key(e['loc']) or 'the file'}: {explain(e)}" for e in errors)) from error


def write(manifest: Manifest, directory: Path) -> None:
    """Write `manifest` into `directory`, without the fields that are None; the file appears whole."""
    with write_atomically(directory / FILE_NAME, durable=True) as fresh:
        fresh.write_text(manifest.model_dump_json(indent=1, exclude_none=True) + "\n")
