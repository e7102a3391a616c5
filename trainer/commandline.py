"""How every command line of this project ends: a user mistake is one red line on stderr and exit code 2."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

HELP = {"help_option_names": ["-h", "--help"]}
"""Context settings of every app."""


def run_app(app: typer.Typer, package: str, mistakes: tuple[type[Exception], ...]) -> NoReturn:
    """Run `app` as `python -m package` and leave the process.

    Args:
        app: the commands.
        package: whose command line it is.
        mistakes: exceptions whose text is already the one line for the user.
    """
    try:
        code = app(args=sys.argv[1:] or ["--help"], prog_name=f"python -m {package}", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except mistakes as error:
        _fail(str(error))
    except typer.TyperException as error:
        named = [word for word in sys.argv[1:2] if not word.startswith("-") and word in _commands(app)]
        _fail(f"{error.format_message()} (see 'python -m {' '.join([package, *named])} --help')")
    except typer.Abort:
        _fail("not started")
    except OSError as error:
        _fail(f"{error.filename or 'disk'}: {error.strerror or error}")


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 10 s, 2 h 05 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _commands(app: typer.Typer) -> set[str]:
    names = {c.name or (c.callback.__name__ if c.callback else "") for c in app.registered_commands}
    return names | {group.name for group in app.registered_groups if isinstance(group.name, str)}


def _fail(line: str) -> NoReturn:
    sys.stdout.flush()
    typer.secho(f"error: {' '.join(line.split())}", fg="red", err=True)
    sys.exit(2)
