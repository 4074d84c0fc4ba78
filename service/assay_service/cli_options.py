"""Define arguments and options that several commands share, or that name keys of the configuration, with their help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Served = Annotated[
    Path, typer.Argument(help="Directory of a checkpoint, or a YAML configuration of several.", exists=True)
]
SampleTexts = Annotated[
    Path,
    typer.Argument(
        help="JSONL: prompt or messages, with completion, completions, or chosen and rejected.",
        exists=True,
        dir_okay=False,
    ),
]

Kind = Annotated[
    Literal["preference", "absolute"] | None,
    typer.Option(
        help="Meaning of the logit: a Bradley-Terry reward (preference), or a quality after the sigmoid (absolute)."
    ),
]
Base = Annotated[str | None, typer.Option(help="Base model of an adapter, if the adapter's files do not lead to it.")]
Position = Annotated[
    Literal[
        "last_token", "last_non_pad_id", "eos", "first_token", "pooler", "mean_pooler", "mean", "completion", "steps"
    ]
    | None,
    typer.Option(help="Tokens that the head reads."),
]
Eos = Annotated[
    Literal["template", "append"] | None,
    typer.Option(help="Origin of the end of turn: printed by the template, or an appended EOS."),
]
Unfinished = Annotated[
    Literal["score", "error"] | None, typer.Option(help="Completions that a length limit cut off: scored, or an error.")
]
Template = Annotated[str | None, typer.Option(help="Jinja file with the chat template.")]
TokenTypes = Annotated[
    Literal["zero", "second_after_sep"] | None,
    typer.Option(help="Token types of prompt and completion, for BERT and DeBERTa-v2."),
]
Pad = Annotated[
    int | None, typer.Option("--pad-token-id", help="Id of the pad token that last_non_pad_id skips.", min=0)
]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Dtype of the base's weights.")]
Compute = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "int8"] | None,
    typer.Option(help="Numbers in which the base computes."),
]
Quantization = Annotated[
    Literal["fp8", "compressed-tensors", "bitsandbytes"] | None,
    typer.Option(help="Format of quantized weights, as config.json names it; they become plain weights at the start."),
]
GgufFile = Annotated[str | None, typer.Option(help="Name of the GGUF file in the base's directory with its weights.")]
Code = Annotated[
    Literal["ignore"] | None,
    typer.Option(help="Serve the model of transformers although config.json names code (auto_map); it is never run."),
]

Preset = Annotated[
    str | None, typer.Option(help="Preset of a known checkpoint, for all keys that are not declared: `assay presets`.")
]

Keys = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Key file: requests need one of its API keys (`assay keys add`).")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Listen on other addresses than loopback without keys.")]
TlsCertificate = Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate in PEM format: serve HTTPS.")]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE", help="Private key of the certificate in PEM format.")]
Config = Annotated[
    Path | None,
    typer.Option(help="YAML configuration; default: the two embedded models.", exists=True, dir_okay=False),
]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of the preset's hub id, if no DIR is given.")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="Lowest level that is logged.")]
LogFormat = Annotated[Literal["text", "json"], typer.Option(help="Text for people, or one JSON object per line.")]
