"""The command `fc7`: assembles the groups of commands and turns errors into exit codes.

Exit codes: 0 success, 1 an error explained by the message, 2 wrong use of a command, 130 stopped by Ctrl-C.
Out of scope: importing torch. The commands that train import it when they run.
"""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from importlib import metadata
from typing import Annotated, Any, Final

import structlog
import typer
from typer.core import TyperGroup

from model_store.errors import Fc7Error, MissingExtraError
from service.cli import console, head, jobs, keys, mcp_server, serve
from service.cli.backup import commands as backup
from service.cli.codes import commands as codes
from service.cli.data import check
from service.cli.data import commands as data
from service.cli.doctor.command import doctor
from service.cli.index import commands as index
from service.cli.index import files, labelling, labels
from service.cli.models import commands as models
from service.cli.models import versions
from service.cli.query import classify, embed, explain, search
from service.cli.training import ablate, demo, evaluate, export, imports, paper, report, train

_TRAINING: Final = frozenset({"torch", "onnx", "matplotlib", "safetensors", "scipy", "tensorboard"})


class Panel(StrEnum):
    """Headings of `fc7 --help`, in order."""

    START = "Start"
    TRAIN = "Train"
    SERVE = "Serve"
    MODELS = "Models"
    INDEX = "Index"
    RESEARCH = "Research"


class _RootGroup(TyperGroup):
    """The command `fc7` with its groups of commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names by panel: Typer would list every group after every command."""
        order = [str(panel) for panel in Panel]
        panels = {name: str(getattr(command, "rich_help_panel", "")) for name, command in self.commands.items()}
        return sorted(super().list_commands(ctx), key=lambda name: order.index(panels[name]))

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Raises MissingExtraError if it imports a missing package of the extra `train`."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _TRAINING:
                raise
            raise MissingExtraError(package, "train") from error


app = typer.Typer(
    name="fc7",
    cls=_RootGroup,
    help="Train an AlexNet on your images, then classify images and find similar ones with it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"fc7 {metadata.version('fc7')}")
        raise typer.Exit


@app.callback()
def _all_commands(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Standard output is for results. A library's warning goes to standard error.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


app.command(rich_help_panel=Panel.START)(demo.demo)
app.command(rich_help_panel=Panel.START)(serve.config)
app.command(rich_help_panel=Panel.START)(doctor)
data.app.command()(check.check)
app.add_typer(data.app, rich_help_panel=Panel.TRAIN)
app.command(rich_help_panel=Panel.TRAIN)(train.train)
app.command(rich_help_panel=Panel.TRAIN)(evaluate.evaluate)
app.command(rich_help_panel=Panel.TRAIN)(export.export)
app.command(rich_help_panel=Panel.SERVE)(serve.serve)
app.command(rich_help_panel=Panel.SERVE)(classify.classify)
app.command(rich_help_panel=Panel.SERVE)(search.search)
app.command(rich_help_panel=Panel.SERVE)(embed.embed)
app.command(rich_help_panel=Panel.SERVE)(explain.explain)
app.add_typer(jobs.app, rich_help_panel=Panel.SERVE)
app.command(rich_help_panel=Panel.SERVE)(mcp_server.mcp)
app.add_typer(keys.app, rich_help_panel=Panel.SERVE)
app.add_typer(backup.app, name="backup", rich_help_panel=Panel.SERVE)
for command in (
    versions.quantize,
    versions.add_explanations,
    versions.compare,
    versions.save,
    versions.load,
    versions.remove,
    versions.verify,
):
    models.app.command()(command)
app.add_typer(models.app, rich_help_panel=Panel.MODELS)
app.add_typer(head.app, rich_help_panel=Panel.MODELS)
app.add_typer(imports.app, rich_help_panel=Panel.MODELS)
for file_command in (
    files.snapshot,
    files.restore,
    files.export,
    files.fields,
    files.duplicates,
    files.verify,
    files.optimize,
):
    index.app.command()(file_command)
index.app.command()(labels.label)
index.app.command()(labelling.suggestions)
index.app.command("map")(labelling.compute_map)
app.add_typer(index.app, rich_help_panel=Panel.INDEX)
app.add_typer(codes.app, rich_help_panel=Panel.INDEX)
app.command(rich_help_panel=Panel.RESEARCH)(report.report)
app.command(rich_help_panel=Panel.RESEARCH)(ablate.ablate)
app.add_typer(paper.app, rich_help_panel=Panel.RESEARCH)


def main() -> None:
    """Run the command line.

    An `Fc7Error`, or an `OSError` about a file, becomes one line on standard error and exit code 1. Ctrl-C before a
    command starts ends the process without a message.
    """
    # ONNX Runtime reads this when it is imported; without it, it sends events and a device ID to its maker.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        app()
    except Fc7Error as error:
        console.error(error)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        console.error(f"{error.filename}: {error.strerror}.")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
