"""How a command speaks: results on standard output, progress and errors on standard error.

In a terminal tables fit its width and the verdict has a colour; elsewhere the text is plain, and as wide as it needs.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rewriter.errors import BadInput
from rewriter.report.plain import GAP, UNBROKEN, plain_lines, rich_table
from rewriter.visible import visible, visible_lines

if TYPE_CHECKING:
    from rewriter.report.table import Block, Table

Progress = Callable[[str, int, int], None]

INTERRUPTED_SENTENCE = "Interrupted: nothing half-written is left behind."

_USUAL = 80
_LEAST_ROOM = 24
"""Columns that sentences need at least; where there is less room, the table is not fitted to the terminal."""
_COLOURS = {
    "EQUIVALENT": "bold green",
    "REPRODUCED": "bold green",
    "FASTER": "bold green",
    "UNCHANGED": "bold yellow",
    "NOISE": "bold yellow",
    "APPROXIMATE": "bold yellow",
    "NOT VERIFIED": "bold yellow",
    "DIFFERENT": "bold red",
    "NOT REPRODUCED": "bold red",
    "SLOWER": "bold red",
}


@dataclass(frozen=True)
class Voice:
    """How much a command says: `quiet` only the last line, `verbose` everything."""

    quiet: bool = False
    verbose: bool = False

    def say(self, blocks: Sequence[Block], last: str) -> None:
        """Print the blocks with an empty line after each, then the last line."""
        show([] if self.quiet else blocks, visible(last))

    @contextlib.contextmanager
    def progress(self, first: str, budget: float | None = None) -> Iterator[Progress]:
        """A function `(what, done, total)`: moves a bar in a terminal; elsewhere nothing, or stage names if verbose.

        With a budget, in seconds from now, the bar tells how much of it is left instead of how long it took so far.
        """
        if not self.quiet and sys.stderr.isatty():
            with _bar(first, budget) as report:
                yield report
        elif self.verbose:
            yield _stages(first, sys.stderr)
        else:
            yield _nothing


def show(blocks: Sequence[Block], last: str) -> None:
    """Print a result.  A reader who stops reading (`| head`) is no error.

    Raises BadInput when standard output cannot be written otherwise (a full disk).
    """
    terminal = sys.stdout.isatty()
    last = "\n".join(visible_lines(last))
    lines = []
    for block in blocks:
        lines += [*_lines(block, terminal), ""]
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        if last:
            sys.stdout.write((_coloured(last) if terminal else last) + "\n")
        sys.stdout.flush()
    except OSError as error:
        lost_output(error)


def columns() -> int:
    """How wide text may be that is folded here: as the terminal, or 80 columns where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _USUAL


def lost_output(error: OSError) -> None:
    """What is left to do when standard output failed: nothing for a reader who stopped; raises BadInput otherwise."""
    # Python flushes standard output once more when it exits, and would complain there.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - stays open to the end
    if not isinstance(error, BrokenPipeError):
        raise BadInput(
            f"standard output cannot be written: {error.strerror or error}; only this text is lost, the work before it "
            "is done."
        ) from error


def complain(text: str) -> None:
    """Lines on standard error; lost when nobody listens."""
    if sys.stderr is None:  # closed, and interrupted before it could be replaced
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("\n".join(visible_lines(text)) + "\n")
        sys.stderr.flush()


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: extension modules that it hits while they load make an ImportError of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _lines(block: Block, terminal: bool) -> list[str]:
    if isinstance(block, str) or not terminal:
        return plain_lines(block)
    from rich.console import Console

    console = Console()
    if console.width - _fixed_width(block) < _LEAST_ROOM:
        console = Console(width=UNBROKEN)  # printed whole, for the terminal to break: nothing is ever cut
    with console.capture() as captured:
        console.print(rich_table(block))
    return [line.rstrip() for line in captured.get().splitlines()]


def _fixed_width(table: Table) -> int:
    """Columns of the terminal that all columns of the table but the last take."""
    from rich.cells import cell_len

    rows = (table.columns, *table.rows)
    return sum(max(cell_len(visible(row[place])) for row in rows) + GAP for place in range(len(table.columns) - 1))


def _coloured(last: str) -> str:
    from rich.console import Console
    from rich.text import Text

    word, bar, rest = last.partition(" | ")
    console = Console(width=UNBROKEN)
    with console.capture() as captured:
        console.print(Text(word, _COLOURS.get(word, "")), Text(bar + rest), sep="", end="", soft_wrap=True)
    return captured.get()


def left_text(seconds: float) -> str:
    """`at most 41 s left`, in minutes from two on; `finishing` when nothing is left."""
    if seconds <= 0:
        return "finishing"
    whole = math.ceil(seconds)
    return f"at most {whole} s left" if whole < 120 else f"at most {math.ceil(whole / 60)} min left"


@contextlib.contextmanager
def _bar(first: str, budget: float | None) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """What is left of the budget, also while nothing is reported."""

        def render(self, task: Task) -> Text:
            return Text(left_text((budget or 0.0) - (task.elapsed or 0.0)), style="progress.remaining")

    clock = TimeElapsedColumn() if budget is None else TimeLeft()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), clock)
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as shown:
        task = shown.add_task(first, total=None)

        def report(what: str, done: int, total: int) -> None:
            # A stage that is done may be followed by work that has no name: the bar then pulses.
            shown.update(task, description=what, completed=done, total=total if done < total else None)

        yield report


def _stages(first: str, stream: TextIO) -> Progress:
    """Each stage's name on a line when it begins."""
    seen: list[str] = []

    def report(what: str, _done: int, _total: int) -> None:
        if not seen or seen[-1] != what:
            seen.append(what)
            stream.write(f"{visible(what)} ...\n")
            stream.flush()

    report(first, 0, 0)
    return report


def _nothing(_what: str, _done: int, _total: int) -> None:
    """No progress is shown."""
