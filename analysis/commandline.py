"""How the command line reads its words and ends: a mistake is one line and exit code 2.

Needs the standard library only, so that the analysis runs where there are no more than its numeric libraries.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from analysis.terminal import error_line

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What a command's `add` adds its parser to."""
WIDEST = 110


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps paragraphs, and whose complaints are one line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Paragraphs)
        # An abbreviation that is clear today is ambiguous once an option is added.
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        sys.stdout.flush()
        error_line(f"{message} (see '{self.prog} --help')")
        sys.exit(2)

    def options(self) -> list[str]:
        """The names of all options."""
        return [name for action in self._actions for name in action.option_strings]

    def several(self) -> str | None:
        """Where the words go that may be given several times without an option's name; None without such."""
        names = [a.dest for a in self._actions if not a.option_strings and a.nargs == "+"]
        return names[0] if names else None


class _Paragraphs(argparse.HelpFormatter):
    """Fills each paragraph of a description by itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options["width"] = min(shutil.get_terminal_size().columns - 2, WIDEST)
        super().__init__(*arguments, **options)

    def add_argument(self, action: argparse.Action) -> None:
        """Leave room for the longest command, which the base class counts without its indent."""
        super().add_argument(action)
        for command in self._iter_indented_subactions(action):
            wide = len(self._format_action_invocation(command)) + self._current_indent
            self._action_max_length = max(self._action_max_length, wide)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [" ".join(part.split()) for part in text.split("\n\n")]
        return "\n\n".join(
            textwrap.fill(part, width, initial_indent=indent, subsequent_indent=indent) for part in parts
        )


def parse(parser: Parser, commands: Mapping[str, Parser], words: Sequence[str]) -> argparse.Namespace:
    """Read the words of a command line.

    Args:
        parser: of the whole, for its help and its complaints.
        commands: name -> parser.
        words: those after the program's name; at least one.

    Raises:
        SystemExit: the help was asked for, or a word is wrong.
    """
    name = words[0]
    if name in parser.options():
        return parser.parse_args(words)
    if name not in commands:
        kind, known = ("option", parser.options()) if name.startswith("-") else ("command", commands)
        parser.error(f"there is no {kind} '{name}'{_nearest(name, known)}")
    command = commands[name]
    # Before argparse looks: it would rather complain of what is missing because of the misspelt option.
    for word in words[1:]:
        if word == "--":
            break
        if word.startswith("--"):
            _refuse_unknown(command, word)
    arguments, rest = command.parse_known_args(words[1:])
    several = command.several()
    for word in rest:
        if word.startswith("-"):
            _refuse_unknown(command, word)
        # argparse takes such words only side by side: here, an option stood between them.
        if several is None or word.startswith("-"):
            command.error(f"'{word}' is one word too many; leave it out")
        getattr(arguments, several).append(word)
    return arguments


def _refuse_unknown(command: Parser, word: str) -> None:
    name = word.partition("=")[0]
    if name not in command.options():
        command.error(f"there is no option '{name}'{_nearest(name, command.options())}")


def _nearest(written: str, valid: Iterable[str]) -> str:
    # Options of one letter resemble each other too much for a guess.
    names = [name for name in valid if len(name) > len("-h")]
    close = difflib.get_close_matches(written, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def run(
    parser: Parser,
    commands: Mapping[str, Parser],
    words: Sequence[str],
    mistakes: tuple[type[Exception], ...],
) -> NoReturn:
    """Run the command that the words name, and leave the process.

    Args:
        parser: of the whole.
        commands: name -> parser, whose default `run` takes what the parser read.
        words: those after the program's name; without any, the help is printed.
        mistakes: exceptions whose text is already the one line for the user.
    """
    try:
        arguments = parse(parser, commands, words or ["--help"])
        arguments.run(arguments)
        # Here, since the interpreter would report a reader that is gone only after the end.
        sys.stdout.flush()
    except mistakes as error:
        _fail(str(error))
    except BrokenPipeError:
        # The rest of the output goes nowhere, so that the interpreter's last flush finds no closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.filename or 'disk'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fail(line: str) -> NoReturn:
    sys.stdout.flush()
    error_line(line)
    sys.exit(2)
