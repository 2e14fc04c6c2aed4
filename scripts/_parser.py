"""The parser of a command line, made of the table of options."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

from _options import COMMANDS, ELSEWHERE, FLAGS, groups


class Usage(ValueError):
    """A mistake on the command line; the message is one sentence with the option, the value and the remedy."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's usage block."""
        message = message.removeprefix("argument ")
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ")
            close = difflib.get_close_matches(word.split()[0].split("=")[0], self._option_string_actions, 1)
            remedy = f"did you mean {close[0]}?" if close else "--help lists all options"
            if word[0] != "-":
                remedy = "a prompt goes in quotes after --prompt"
            message = f"{word}: no such option; {remedy}"
        elif message.endswith("expected one argument"):
            message += "; one that begins with a dash is written --option=-value"
        raise Usage(message)


def make_parser(command: str) -> Parser:
    about, own = COMMANDS[command]
    parser = Parser(
        prog=f"{command}.py",
        description=f"{about} Options may be written with dashes or underscores.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        allow_abbrev=False,
    )
    for title, options in groups(command).items():
        add = parser.add_argument_group(title).add_argument
        for names, kind, metavar, text in options:
            if kind is True:
                add(*names.split(), action="store_true", help=text)
            elif kind is bool:
                add(*names.split(), action=argparse.BooleanOptionalAction, help=text)
            elif hasattr(kind, "bare"):
                add(*names.split(), type=kind, nargs="?", const=kind.bare, metavar=metavar, help=text)
            else:
                add(*names.split(), type=kind, metavar=metavar, help=text)
    known = {name for option in own for name in option[0].split()}
    for name, words in FLAGS.items():
        parser.add_argument(name, action="store_const", const=words, dest="sampler", help=argparse.SUPPRESS)
    for name in (name for name in ELSEWHERE if name not in known):
        parser.add_argument(name, nargs="?", const=True, help=argparse.SUPPRESS)
    return parser
