"""The command line: `prefloss evaluate`, which `python -m prefloss evaluate` is too."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import prefloss


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all went well, 2 where the input or the arguments are at fault: then one line on stderr says what."""
    parser = argparse.ArgumentParser(prog="prefloss", description=prefloss.__doc__)
    parser.add_argument("--version", action="version", version=f"prefloss {prefloss.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    text = "what a set of preference pairs says about a model's expected loss, and how sure that is"
    evaluating = commands.add_parser("evaluate", help=text, description=text[0].upper() + text[1:] + ".")
    try:
        _ = prefloss.evaluate  # says what to install where something is missing
        from .evaluation import command, files
    except ImportError as error:
        print(f"prefloss: {error}", file=sys.stderr)
        return 2
    command.add_arguments(evaluating)
    given = parser.parse_args(arguments)
    try:
        command.run(given)
    except files.InputError as error:
        print("prefloss:", *str(error).splitlines(), file=sys.stderr)  # one line, whatever a file names its columns
        return 2
    except BrokenPipeError:  # who read the output has gone: there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
