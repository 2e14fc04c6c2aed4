"""The parser of a command line, made of the table of options."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import IO, NoReturn

from _options import COMMANDS, groups
from _other_words import ELSEWHERE, FLAGS, IN_PYTHON, OTHER_WORDS


class Usage(ValueError):
    """A mistake on the command line; the message is one sentence with the option, the value and the remedy."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's usage block."""
        message = message.removeprefix("argument ")
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ")
            if not word.strip():
                raise Usage("an argument is empty; leave it out, or put a prompt in quotes after --prompt")
            close = difflib.get_close_matches(word.split()[0].split("=")[0], self._option_string_actions, 1)
            remedy = f"did you mean {close[0]}?" if close else "--help lists all options"
            if word[0] != "-":
                remedy = "a prompt goes in quotes after --prompt"
            message = f"{word}: no such option; {remedy}"
        elif message.endswith("expected one argument"):
            message += "; one that begins with a dash is written --option=-value"
        raise Usage(message)

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        """As argparse does, which passes over a reader of --help that has gone."""
        print(message, end="", file=file or sys.stderr)


def as_typed(message: str, command: str) -> str:
    """The library's words for settings as the options that they are: "sigma_min is 3" as "--sigma-min is 3".

    A name of several words is one wherever it stands; one of a single word, such as eta, where the message begins.
    """
    names = {_variable(option[0]) for group in groups(command).values() for option in group}
    options = dict(zip(names, names, strict=True)) | IN_PYTHON

    def option(match: re.Match[str]) -> str:
        word = match[1]
        return f"--{options[word].replace('_', '-')}" if word in options else match[0]

    message = re.sub(r"\b([a-z_]+)=(?=FILE)", lambda match: f"{option(match)} ", message)
    message = re.sub(r"^(\w+)(?= (?:is|has|and|-?\d))", option, message)
    message = re.sub(r"(?<=^--sigmas and )(timesteps)", option, message)
    return re.sub(r"(?<![\w./'\"-])([a-z]+_[a-z_]+)(?![\w./'\"=-])", option, message)


def _variable(names: str) -> str:
    """What argparse calls an option of these names."""
    return names.split()[0].strip("-").replace("-", "_")


def make_parser(command: str) -> Parser:
    about, own = COMMANDS[command]
    parser = Parser(
        prog=f"{command}.py",
        description=f"{about} Options may be written with dashes or underscores, "
        "and many as A1111 and diffusers call them: --cfg-scale, --scheduler, --subseed, …",
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
    for words, ours in OTHER_WORDS.items():
        kinds = [option[1] for options in groups(command).values() for option in options if ours in option[0].split()]
        for kind in kinds:
            parser.add_argument(*words.split(), type=kind, dest=_variable(ours), help=argparse.SUPPRESS)
    known = {name for option in own for name in option[0].split()}
    for name, words in FLAGS.items():
        parser.add_argument(name, action="store_const", const=words, dest="sampler", help=argparse.SUPPRESS)
    for name in (name for name in ELSEWHERE if name not in known):
        parser.add_argument(name, nargs="?", const=True, help=argparse.SUPPRESS)
    return parser
