"""`assay serve`. Imports only typer and the standard library at the top; the rest when the command runs."""

import contextlib
import gc
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

DRAIN_S = 30  # after SIGTERM: for requests in flight; a client that never finishes its body cannot hold up the end


@app.command()
def serve(
    config: Annotated[
        Path | None,
        typer.Option(help="YAML configuration; default: the two embedded models.", exists=True, dir_okay=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
) -> None:
    """Serve reward models over HTTP."""
    # Heavy libraries only when the command runs, so that `assay --help` is quick and the client needs none of them.
    import uvicorn  # noqa: PLC0415

    from assay_service import settings  # noqa: PLC0415
    from assay_service.api.app import create_app  # noqa: PLC0415
    from assay_service.errors import StartError  # noqa: PLC0415
    from assay_service.scoring.memory import keep_freed_memory  # noqa: PLC0415

    keep_freed_memory()

    def end() -> None:
        server.should_exit = True

    try:
        application = create_app(settings.read(config or settings.EMBEDDED), on_failure=end)
    except StartError as error:
        typer.echo(f"assay serve: {error.message}", err=True)
        raise typer.Exit(2) from None
    server = uvicorn.Server(
        uvicorn.Config(application, host=host, port=port, access_log=False, timeout_graceful_shutdown=DRAIN_S)
    )
    gc.collect()
    gc.freeze()  # what is loaded now stays: collections need not walk through it again
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started or application.state.scorer.engine.failed:
        raise typer.Exit(1)
