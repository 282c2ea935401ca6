"""`fc7 serve` and `fc7 config`: the HTTP service and its settings.

Settings come from the environment; command line options take precedence over them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from service.cli import console
from service.cli.options import AsJson, Device, Home
from service.settings import SettingLine, describe, load_settings, unknown_variables, variable


def serve(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="FC7_HOST")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 picks a free one.", show_default="FC7_PORT")
    ] = None,
    device: Device = None,
) -> None:
    """Serve the active model and the index over HTTP until stopped by Ctrl-C or SIGTERM."""
    # Imported here so that the other commands start faster. Signals first: the other imports take a second.
    from service.process import Shutdown, raise_descriptor_limit  # noqa: PLC0415

    shutdown = Shutdown()
    raise_descriptor_limit()

    from model_store.memory import limit_arenas  # noqa: PLC0415
    from service.app import create_app  # noqa: PLC0415
    from service.observability.background_stream import background_output, open_standard_descriptors  # noqa: PLC0415
    from service.observability.logs import configure_process, lost_line, make_logger  # noqa: PLC0415
    from service.server import bind, run  # noqa: PLC0415

    open_standard_descriptors()
    limit_arenas()
    endpoint = None if os.environ.get(variable("otlp_endpoint")) else os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    settings = load_settings(home=home, host=host, port=port, device=device, otlp_endpoint=endpoint or None)
    with background_output(partial(lost_line, settings.log_format)) as lost_log_lines:
        configure_process(settings.log_format, settings.log_level)
        log = make_logger(settings.log_format, settings.log_level)
        for sentence in unknown_variables(os.environ):
            log.warning("unknown setting", detail=sentence)
        listener = bind(settings)
        code = run(create_app(settings, lost_log_lines=lost_log_lines), settings, listener, shutdown)
    sys.exit(code)


def config(*, as_json: AsJson = False) -> None:
    """Print every setting with its value and its source; secrets are hidden."""
    lines = list(describe(load_settings()))
    if as_json:
        console.print_json([asdict(line) | {"value": _value(line) or None} for line in lines])
    else:
        table = Table("setting", "value", "source", "meaning", box=None, header_style="bold")
        for line in lines:
            table.add_row(line.variable, _value(line), line.source, line.description)
        console.show(table)
    for sentence in unknown_variables(os.environ):
        console.warn(sentence)
    if not as_json:
        console.next_step("set variables in the environment, then fc7 serve")


def _value(line: SettingLine) -> str:
    """Return the value to show; paths are absolute."""
    is_path = line.variable == variable("home") or (
        line.variable == variable("index_uri") and line.value and "://" not in line.value
    )
    return str(Path(line.value).absolute()) if is_path else line.value
