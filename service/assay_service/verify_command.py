"""Define the command `assay verify`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from assay_service.cli_errors import print_start_errors
from assay_service.cli_options import Compute, SampleTexts, Served

if TYPE_CHECKING:
    from assay_service.fidelity import Fidelity


def verify(
    served: Served,
    file: SampleTexts,
    against: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Numbers in which the reference computes.")
    ] = "float32",
    compute: Compute = None,
) -> None:
    """Measure how far a model's logits in its numbers are from those in others, on the items of FILE.

    The result is printed and kept beside the checkpoint, where `assay serve` finds it for `/info`. The exit code is 2
    if the checkpoint or FILE is wrong.
    """
    from assay_service import logs  # noqa: PLC0415
    from assay_service.declaration import read_declared  # noqa: PLC0415
    from assay_service.resolve import read_resolved  # noqa: PLC0415

    logs.configure("warning", "text", access=False)
    with print_start_errors("verify"):
        raw, directory = read_declared(served)
        if compute is not None:
            for keys in raw["signals"].values():
                keys["compute"] = compute
        settings, resolved = read_resolved(raw, directory, str(served))
        from assay_service.verify import verify as measure_signals  # noqa: PLC0415 - it imports torch

        for name, numbers, fidelity, kept in measure_signals(settings, resolved, against, file):
            typer.echo(_format(name, numbers, fidelity))
            typer.echo(f"  kept in {kept}")


def _format(name: str, compute: str, fidelity: "Fidelity") -> str:
    """Return the result of one signal as lines for people."""
    agreement = "no pairs" if fidelity.order_agreement is None else f"{fidelity.order_agreement:.2%}"
    rows = {
        "mean difference": f"{fidelity.mean_difference:.4f} standard deviations",
        "largest difference": f"{fidelity.largest_difference:.4f} standard deviations",
        "Spearman": f"{fidelity.spearman:.5f}",
        "pairs in one order": f"{agreement} of {fidelity.pairs}",
        "changed best picks": f"{fidelity.changed_picks} of {fidelity.prompts}",
    }
    lines = [f"  {label:<20}{value}" for label, value in rows.items()]
    return "\n".join([f"{name}: {compute} against {fidelity.against}, {fidelity.items} items", *lines])
