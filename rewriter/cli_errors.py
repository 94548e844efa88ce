"""Exit codes, and the one place where an error becomes a sentence on standard error and one of them."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer

from rewriter.cli_show import INTERRUPTED_SENTENCE, complain, interrupted, lost_output
from rewriter.errors import BadInput, RewriterError
from rewriter.visible import visible

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
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # tensor names may hold what the terminal's encoding lacks
    logging.getLogger().addHandler(logging.NullHandler())  # without a handler Python prints what libraries log
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        return _run(app, asked)


def _open_closed_streams() -> None:
    """Send what goes to a closed stream nowhere: Python has None for it, and files would get its number.

    A library that prints to standard error would then print into the model that is being written.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - open to the end


def _run(app: typer.Typer, asked: list[str]) -> int:
    try:
        return _called(app, asked)
    except OSError as error:
        if not _output_failed():
            return _bug(error, asked)
        try:
            lost_output(error)
        except BadInput as said:
            return _fail(str(said), BAD_INPUT)
        return DONE


def _output_failed() -> bool:
    """Whether it is standard output that an error came from: it then refuses an empty line, too."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _called(app: typer.Typer, asked: list[str]) -> int:
    try:
        code = int(app(args=asked, prog_name="rewriter", standalone_mode=False) or DONE)
    except RewriterError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit:  # typer makes this of a reader of its help who stopped reading
        return DONE
    except MemoryError:
        return _fail("the memory of this machine is not enough; nothing was written.", NOT_VERIFIED)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever else comes up is a bug, and is shown as one
        usage = _usage_sentence(error)
        if usage:
            return _fail(usage, BAD_INPUT)
        if not interrupted(error):
            return _bug(error, asked)
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer makes this of Ctrl-C
        complain(INTERRUPTED_SENTENCE)
    return code


def _fail(sentence: str, code: int) -> int:
    complain(visible(f"Error: {sentence[:1].upper()}{sentence[1:]}"))
    return code


def _usage_sentence(error: Exception) -> str | None:
    """What typer has against the arguments, on one line; None for an error that is not typer's."""
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    context = getattr(error, "ctx", None)
    command = "rewriter" if context is None else context.command_path
    said = " ".join(str(describe()).split()).replace("Value error, ", "")  # pydantic, which typer reads choices with
    return f"{said.rstrip('.')}; see '{command} --help'."


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
