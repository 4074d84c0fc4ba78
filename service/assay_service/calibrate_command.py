"""Define the command `assay calibrate`."""

import typer

from assay_service.cli_errors import print_start_errors
from assay_service.cli_options import SampleTexts, Served


def calibrate(
    served: Served,
    file: SampleTexts,
) -> None:
    """Score the texts of FILE, and write mean, standard deviation and distribution of the logits into the manifest.

    Blends with `standardise: manifest` use the first two. The third is the reference of the distribution, with which
    later logits can be compared. The exit code is 2 if the checkpoint or FILE is wrong, or FILE has too few texts.
    """
    from assay_service import logs  # noqa: PLC0415
    from assay_service.declaration import read_declared  # noqa: PLC0415
    from assay_service.resolve import read_resolved  # noqa: PLC0415

    logs.configure("warning", "text", access=False)
    with print_start_errors("calibrate"):
        raw, directory = read_declared(served)
        settings, resolved = read_resolved(raw, directory, str(served))
        from assay_service.calibrate import calibrate as measure_signals  # noqa: PLC0415 - it imports torch

        for name, mean, std, reference, kept in measure_signals(settings, resolved, file):
            typer.echo(f"{name}: mean {mean:.4f}, standard deviation {std:.4f}, {reference.samples} completions")
            typer.echo(f"  written to {kept}")
            if (own := settings.signals[name]).mean is not None or own.std is not None or own.moments is not None:
                typer.echo(f"  {served} declares its own moments, which take precedence", err=True)
