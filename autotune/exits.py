"""How a command ends when it can't go on: one line on standard error, and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

import click

from autotune.data import AutotuneError, UsageError


class Group(click.Group):
    """Exit codes: 0 done, 1 the work failed, 2 bad usage, 130 stopped by the user."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}) or 0)
        except click.ClickException as error:
            end(f"{error.format_message()} (see {_command(error)} --help)", 2)
        except (click.Abort, KeyboardInterrupt):
            end("stopped", 130)
        except AutotuneError as error:
            end(str(error), 2 if isinstance(error, UsageError) else 1)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read has had enough; Python flushes once more
            sys.exit(1)
        except OSError as error:
            end(f"{error.filename or 'output'}: {error.strerror}", 1)


def end(message: str, code: int) -> NoReturn:
    click.echo(f"autotune: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _command(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "autotune"


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends a sweep as Ctrl-C does: the worker with it, what is finished recorded."""
    raise KeyboardInterrupt
