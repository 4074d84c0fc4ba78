"""Define the options that several commands share, and read their values."""

from collections.abc import Mapping
from typing import Annotated

import typer

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="JSON lines or a JSON list, plain or gzip, or Parquet; - is stdin.", show_default=False
    ),
]
Model = Annotated[str | None, typer.Option(help="Signal or blend to score by.")]
Weights = Annotated[str | None, typer.Option(metavar="NAME=W,...", help="Weight of each signal, instead of a model.")]
Truncation = Annotated[str | None, typer.Option(help="Treatment of items that are too long: error or prompt_left.")]
TokenizerSha256 = Annotated[
    str | None,
    typer.Option(
        "--tokenizer-sha256",
        metavar="HASH",
        help="Read prompt_ids and completion_ids, which the tokenizer.json with this SHA-256 gave.",
        show_default=False,
    ),
]
# The one place where the environment is read, for every command that talks to a service.
Url = Annotated[str, typer.Option(envvar="ASSAY_URL", help="Address of the service.")]
# A file, because other users of the machine can read a command's words.
ApiKeyFile = Annotated[
    str | None,
    typer.Option(envvar="ASSAY_API_KEY_FILE", metavar="FILE", help="File with the API key.", show_default=False),
]
LOCAL = "http://127.0.0.1:8000"
Output = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", help="Write JSON to this file instead of printing a table; - is stdout.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, as -o - does.")]
Timeout = Annotated[
    float, typer.Option(min=0.1, metavar="SECONDS", help="Give up if the service is silent for this long.")
]
ChunkSize = Annotated[int, typer.Option(min=1, help="Most rows in one request; a slow service gets fewer.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Most requests in flight at once.")]
PromptField = Annotated[str, typer.Option(metavar="KEY", help="Key that holds the prompt.")]
CompletionField = Annotated[str, typer.Option(metavar="KEY", help="Key that holds the completion.")]
MessagesField = Annotated[str, typer.Option(metavar="KEY", help="Key that holds a whole conversation.")]


def choose_target(output: str | None, json: bool) -> str | None:
    """Return the output of `-o` and `--json`, None for a table.

    Raises:
        BadParameter: both are given.
    """
    if json and output not in (None, "-"):
        raise typer.BadParameter("--json writes to stdout, and -o to a file: give one of them")
    return "-" if json else output


def parse_weights(text: str | None) -> Mapping[str, float] | None:
    """Parse weights from "name=w,...".

    Raises:
        BadParameter: the text has another form.
    """
    if text is None:
        return None
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not (name and equals) or name in weights:
            raise typer.BadParameter(f"--weights must be NAME=W,... with each name once, got {text!r}")
        try:
            weights[name] = float(number)
        except ValueError as error:
            raise typer.BadParameter(f"--weights: {number!r} is not a number") from error
    return weights
