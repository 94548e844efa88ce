"""Exit codes, and the one place where an error becomes a sentence on standard error and one of them."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer

from rewriter.cli_show import complain
from rewriter.errors import RewriterError

DONE: Final = 0
"""Verified and written, or equivalent, or nothing to be done."""
DIFFERENT: Final = 1
"""The models compute different things; nothing was written."""
BAD_INPUT: Final = 2
"""Bad usage, or a bad input file."""
NOT_VERIFIED: Final = 3
"""Equivalence could neither be shown nor refuted; nothing was written."""
BUG: Final = 4
"""An internal error."""
INTERRUPTED: Final = 130
"""Ctrl-C."""


def guarded(app: typer.Typer, asked: list[str]) -> int:
    """Run the command that `asked` names; returns its exit code.  What libraries warn of stays out of the output."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # tensor names may hold what the terminal's encoding lacks
    logging.getLogger().addHandler(logging.NullHandler())  # without a handler Python prints what libraries log
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        return _run(app, asked)


def _run(app: typer.Typer, asked: list[str]) -> int:
    try:
        code = int(app(args=asked, prog_name="rewriter", standalone_mode=False) or DONE)
    except RewriterError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except MemoryError:
        return _fail("the memory of this machine is not enough; nothing was written.", NOT_VERIFIED)
    except Exception as error:  # noqa: BLE001 - whatever else comes up is a bug, and is shown as one
        usage = _usage_sentence(error)
        return _fail(usage, BAD_INPUT) if usage else _bug(error, asked)
    if code == INTERRUPTED:  # typer makes this of Ctrl-C
        complain("Interrupted: nothing half-written is left behind.")
    return code


def _fail(sentence: str, code: int) -> int:
    complain(f"Error: {sentence[:1].upper()}{sentence[1:]}")
    return code


def _usage_sentence(error: Exception) -> str | None:
    """What typer has against the arguments, on one line; None for an error that is not typer's."""
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    context = getattr(error, "ctx", None)
    command = "rewriter" if context is None else context.command_path
    return f"{' '.join(str(describe()).split()).rstrip('.')}; see '{command} --help'."


def _bug(error: Exception, asked: Sequence[str]) -> int:
    if {"-v", "--verbose"} & set(asked):
        complain("".join(traceback.format_exception(error)).rstrip())
    summary = " ".join(traceback.format_exception_only(error)[-1].split())
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(last[0].filename).name}, line {last[0].lineno})" if last else ""
    complain(f"Internal error: {summary}{where}")
    complain(
        "This is a bug: please report it to the project's issue tracker, with the command and what it prints with -v."
    )
    return BUG
