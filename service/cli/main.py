"""The command `fc7`: puts the groups of commands together and turns errors into exit codes.

Exit codes: 0 done, 1 an error that the message explains, 2 a wrong use of the command, 130 stopped by Ctrl-C.
Does not: import torch; the commands that train import it when they run.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from model_store.errors import Fc7Error
from service.cli import query, serve
from service.cli.codes import commands as codes
from service.cli.index import commands as index
from service.cli.index import files as index_files
from service.cli.models import commands as models
from service.cli.models import quantize, versions
from service.cli.training import ablate, data, demo, evaluate, imports, paper, report, train

app = typer.Typer(
    name="fc7",
    help="Train an AlexNet on your images, and serve what each one is and what looks like it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.add_typer(data.app, name="data")
app.command()(train.train)
app.command()(ablate.ablate)
app.command()(evaluate.evaluate)
app.command()(evaluate.export)
app.command()(report.report)
app.add_typer(imports.app)
models.app.command()(quantize.quantize)
app.add_typer(models.app)
models.app.command("compare")(versions.compare_versions)
models.app.command()(versions.export)
models.app.command("import")(versions.import_archive)
models.app.command()(versions.remove)
models.app.command()(versions.verify)
app.add_typer(index.app)
index.app.command()(index_files.snapshot)
index.app.command()(index_files.restore)
index.app.command()(index_files.export)
index.app.command()(index_files.duplicates)
index.app.command("verify")(index_files.verify_command)
app.add_typer(codes.app)
app.add_typer(paper.app)
app.command()(serve.serve)
app.command()(serve.config)
app.command()(query.classify)
app.command()(query.search)


def main() -> None:
    """Run the command line; every `Fc7Error` becomes one clear line on standard error and exit code 1."""
    try:
        app()
    except Fc7Error as error:
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", escape(str(error)), highlight=False)
        sys.exit(1)
