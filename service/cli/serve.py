"""`fc7 serve` and `fc7 config`: the service, and the settings that it would take.

Does not: hold anything of its own; settings come from the environment, the options win over them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.settings import describe, load_settings, unknown_variables, variable

Home = Annotated[Path | None, typer.Option(help="Folder of models and index [FC7_HOME].", show_default=False)]


def serve(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [FC7_HOST].", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [FC7_PORT].", show_default=False)] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N [FC7_DEVICE].", show_default=False)
    ] = None,
) -> None:
    """Answer over HTTP until told to stop. Every setting: fc7 config."""
    # Here, because the other commands need not wait for them.
    from service.app import create_app  # noqa: PLC0415
    from service.inference.memory import limit_arenas  # noqa: PLC0415
    from service.observability.logs import configure_process, make_logger  # noqa: PLC0415
    from service.server import bind, run  # noqa: PLC0415

    limit_arenas()
    endpoint = None if os.environ.get(variable("otlp_endpoint")) else os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    settings = load_settings(home=home, host=host, port=port, device=device, otlp_endpoint=endpoint or None)
    configure_process(settings.log_format, settings.log_level)
    log = make_logger(settings.log_format, settings.log_level)
    for sentence in unknown_variables(os.environ):
        log.warning("unknown setting", detail=sentence)
    listener = bind(settings)
    sys.exit(run(create_app(settings), settings, listener))


def config() -> None:
    """Print every setting with its value and where it comes from; keys are hidden."""
    settings = load_settings()
    table = Table("setting", "value", "source", "meaning", box=None, header_style="bold")
    for line in describe(settings):
        table.add_row(line.variable, line.value, line.source, line.description)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
    for sentence in unknown_variables(os.environ):
        Console(stderr=True, soft_wrap=True).print(f"[bold yellow]warning:[/] {sentence}", highlight=False)
