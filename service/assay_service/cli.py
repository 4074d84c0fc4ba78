"""Define the commands `assay serve`, `inspect`, `convert`, `presets`, `verify`, `calibrate` and `keys`.

The module imports only typer and the standard library at the top, and everything else when a command runs.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay_service import cli_keys
from assay_service.calibrate_command import calibrate
from assay_service.cli_errors import print_start_errors
from assay_service.cli_options import (
    Base,
    Code,
    Compute,
    Config,
    Dtype,
    Eos,
    GgufFile,
    Insecure,
    Keys,
    Kind,
    LogFormat,
    LogLevel,
    Pad,
    Position,
    Preset,
    Quantization,
    Revision,
    Template,
    TlsCertificate,
    TlsKey,
    TokenTypes,
    Unfinished,
)
from assay_service.verify_command import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from assay_service.inspection import Inspection
    from assay_service.resolve import ResolvedSignal
    from assay_service.settings import Settings

app = typer.Typer()
app.command("verify")(verify)
app.command("calibrate")(calibrate)
app.add_typer(cli_keys.app, name="keys")


@app.command()
def serve(  # noqa: PLR0913, PLR0917 - the options of a command
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A model, adapter or training run to serve.")
    ] = None,
    config: Config = None,
    preset: Preset = None,
    revision: Revision = None,
    kind: Kind = None,
    eos: Eos = None,
    unfinished: Unfinished = None,
    score_position: Position = None,
    base: Base = None,
    template: Template = None,
    dtype: Dtype = None,
    compute: Compute = None,
    token_types: TokenTypes = None,
    pad: Pad = None,
    quantization: Quantization = None,
    gguf_file: GgufFile = None,
    code: Code = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    keys: Keys = None,
    insecure: Insecure = False,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
    access_log: Annotated[bool, typer.Option("--access-log", help="Log one line for each request.")] = False,
) -> None:
    """Serve reward models over HTTP: the models of a YAML file, the one in DIR, or that of a preset.

    Options declare what the files in DIR do not say; `assay inspect DIR` lists these keys. A preset declares them for a
    known checkpoint: the one in DIR, or without DIR the one on the hub. The exit code is 2 if the configuration, a
    checkpoint or the address is wrong. It is 1 if the service fails later, and 3 if requests were not finished.
    """
    # Heavy libraries only when the command runs, so that `assay --help` is quick and the client needs none of them.
    from assay_service import access, logs  # noqa: PLC0415
    from assay_service.listen import listen  # noqa: PLC0415
    from assay_service.serving import run  # noqa: PLC0415

    declared: dict[str, object] = {"kind": kind, "eos": eos, "unfinished": unfinished, "base": base, "dtype": dtype}
    declared |= {"score_position": score_position, "template": template, "token_types": token_types}
    declared |= {"pad_token_id": pad, "quantization": quantization, "gguf_file": gguf_file, "code": code}
    declared |= {"compute": compute, "preset": preset, "revision": revision}
    logs.configure(log_level, log_format, access=access_log)
    with print_start_errors("serve"):
        protect = partial(access.declare_access, keys=keys, certificate=tls_certificate, key=tls_key, insecure=insecure)
        settings, signals = _read_served(directory, config, declared, protect)
        tls = access.check_access(settings)
        # Before the models, so that a taken port is reported at once.
        listening = listen(host, port, is_protected=settings.keys is not None or settings.insecure)
    if (exit_code := run(settings, signals, listening, host, tls)) != 0:
        raise typer.Exit(exit_code)


@app.command("inspect")
def inspect_directory(  # noqa: PLR0913, PLR0917 - the options of a command
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A model, adapter or training run.")],
    preset: Preset = None,
    kind: Kind = None,
    eos: Eos = None,
    unfinished: Unfinished = None,
    score_position: Position = None,
    base: Base = None,
    template: Template = None,
    dtype: Dtype = None,
    compute: Compute = None,
    token_types: TokenTypes = None,
    pad: Pad = None,
    quantization: Quantization = None,
    gguf_file: GgufFile = None,
    code: Code = None,
) -> None:
    """Report what is in DIR, without loading it, and print the YAML that serves it.

    The whole output is a YAML file: run `assay inspect DIR > service.yaml`, fill in the empty keys, and run
    `assay serve --config service.yaml`. The exit code is 1 if DIR cannot be served whatever is declared.
    """
    from assay_service.inspection import inspect  # noqa: PLC0415

    declared: dict[str, object] = {"kind": kind, "eos": eos, "unfinished": unfinished, "base": base, "dtype": dtype}
    declared |= {"score_position": score_position, "template": template, "token_types": token_types}
    declared |= {"pad_token_id": pad, "quantization": quantization, "gguf_file": gguf_file, "code": code}
    declared["compute"] = compute
    declared["preset"] = preset
    with print_start_errors("inspect"):
        inspection = inspect(directory, declared)
    _print_inspection(inspection)


@app.command("convert")
def convert_checkpoint(  # noqa: PLR0913, PLR0917 - the options of a command
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Directory of a foreign checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write; it must not exist, or be empty.")],
    base: Annotated[
        Path | None, typer.Option(help="Directory with the config.json and the tokenizer that SOURCE lacks.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="Name of the head's module, if it is not a known one.")] = None,
    preset: Preset = None,
    kind: Kind = None,
    eos: Eos = None,
    unfinished: Unfinished = None,
    score_position: Position = None,
    template: Annotated[
        Path | None, typer.Option(help="Jinja file with the chat template; it is copied into OUT.")
    ] = None,
    token_types: TokenTypes = None,
    pad: Pad = None,
) -> None:
    """Convert a reward model of another trainer into one that can be served, and print the YAML that serves it.

    Pickles become safetensors files, the head and all prefixes get the names of transformers, and a normalizer is
    folded into the head. No code of SOURCE is run and nothing is downloaded. OUT appears whole or not at all. What was
    done goes to stderr.
    """
    with print_start_errors("convert"):
        from assay_service.conversion.convert import convert  # noqa: PLC0415
        from assay_service.conversion.prepare import Request  # noqa: PLC0415
        from assay_service.inspection import inspect  # noqa: PLC0415
        from assay_service.preset_keys import fill_conversion  # noqa: PLC0415
        from assay_service.scoring.manifest import Manifest  # noqa: PLC0415

        declared: dict[str, Any] = {"kind": kind, "eos": eos, "unfinished": unfinished, "token_types": token_types}
        declared |= {"score_position": score_position, "pad_token_id": pad, "template": template, "head": head}
        keys = declared if preset is None else fill_conversion(preset, declared)
        head, template = keys.pop("head"), keys.pop("template")
        for line in convert(Request(source, base, head, template, Manifest.model_validate(keys)), out):
            typer.echo(line, err=True)
        inspection = inspect(out, {"preset": preset})
    _print_inspection(inspection)


@app.command("presets")
def list_presets() -> None:
    """List the presets: name, hub id, and what is known about their scores."""
    from assay_service import preset  # noqa: PLC0415

    for name in preset.list_names():
        known = preset.read(name)
        convert = "" if known.convert is None else ", convert first"
        state = "rendering only, no score" if known.golden_state == "rendering" else known.golden_state
        typer.echo(f"{name:<44} {known.model} (golden row: {state}{convert})")


def _print_inspection(inspection: "Inspection") -> None:
    """Print the report on a directory; the exit code is 1 if it cannot be served whatever is declared."""
    typer.echo(inspection.text, nl=False)
    if inspection.problems:
        raise typer.Exit(1)


def _read_served(
    directory: Path | None,
    config: Path | None,
    declared: "Mapping[str, object]",
    add_access: "Callable[[object], object]",
) -> "tuple[Settings, dict[str, ResolvedSignal]]":
    """Return the configuration that `assay serve` was asked for: of a directory, a preset, a file, or the embedded one.

    Args:
        directory: directory of a checkpoint; None if none is given.
        config: YAML file; None if none is given.
        declared: keys of the signal, with None for those that are not declared.
        add_access: function that adds the options about keys and TLS to a configuration.
    """
    from assay_service import resolve  # noqa: PLC0415
    from assay_service.declaration import build_declaration, declare_preset  # noqa: PLC0415
    from assay_service.settings import EMBEDDED  # noqa: PLC0415
    from assay_service.yaml_file import read_yaml  # noqa: PLC0415

    if directory is None and declared["preset"] is None:
        _refuse_options_without_directory(declared)
        path = config or EMBEDDED
        return resolve.read_resolved(add_access(read_yaml(path)), path.resolve().parent, str(path))
    if config is not None:
        raise typer.BadParameter("give either DIR, --preset or --config, not two of them")
    raw = declare_preset(declared) if directory is None else build_declaration(directory, declared)
    return resolve.read_resolved(add_access(raw), Path.cwd(), str(directory or f"preset {declared['preset']}"))


def _refuse_options_without_directory(declared: "Mapping[str, object]") -> None:
    for key, value in declared.items():
        if value is not None:
            raise typer.BadParameter(f"--{key.replace('_', '-')} applies only to DIR; in a YAML file declare `{key}`")
