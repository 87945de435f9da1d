"""The command line: a thin face over the library."""

from __future__ import annotations

import os

# Before numpy is loaded: threads of the search's small matrices wait for each other in busy loops, on cores that
# the compilers and the worker need.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click

from autotune.cli import check, move, show, tune
from autotune.exits import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="autotune")
def main() -> None:
    """Tune Triton kernels for the problems a model runs; keep every trial; serve the winners."""


for _module in (show, tune, check, move):
    for _command in _module.COMMANDS:
        main.add_command(_command)
