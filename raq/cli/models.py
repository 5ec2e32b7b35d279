"""The command about networks: inspect."""

from pathlib import Path
from typing import Annotated

import typer

from raq.cli.options import new_console, print_json


def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="module:function, torchvision:, timm: or transformers:NAME.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="Of images, 3,224,224; or NAME=SHAPE:DTYPE:LARGEST, repeatable. Default: 3,224,224.",
        ),
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", min=1, metavar="N", help="num_classes.")] = None,
    output: Annotated[str | None, typer.Option("--output", metavar="KEY", help="Which output, of several.")] = None,
    backend: Annotated[str, typer.Option("--backend", metavar="NAME", help="x86, arm, xnnpack or cuda.")] = "x86",
    compiles: Annotated[
        bool,
        typer.Option("--compile", help="Compile the int8 program and run it too: what share of it runs in int8."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What would become of a network, before any data or training: does it export, what would be int8, and why not.

    Its weights are as its function leaves them, and ranges are random: accuracy is not looked at.
    """
    from raq.artifact.inspection import default_inputs, inspect_model
    from raq.environment import environment_kept
    from raq.errors import UserError
    from raq.report.inspection import print_inspection

    if compiles and backend in ("xnnpack", "cuda"):
        raise UserError(
            f"--compile: Inductor compiles the backends x86 and arm here, and not {backend}", "leave one of them out"
        )
    with environment_kept():
        wanted = int(output) if output is not None and output.isdigit() else output
        count = classes if classes is not None else 1000 if model.startswith(("torchvision:", "timm:")) else None
        found = inspect_model(
            model, default_inputs(inputs or []), count, wanted, str(Path.cwd()), backend, compiles=compiles
        )
    if as_json:
        print_json(found.as_record())
    else:
        print_inspection(new_console(), found.as_record())
    if found.reason is not None:
        raise typer.Exit(1)
