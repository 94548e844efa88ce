"""The command line of the modules here that put results into a page of docs/: write it, or check it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def page_command(description: str | None, page: Path, current: Callable[[], str], results: Path) -> int:
    """Write the page, or with --check say whether it is up to date; gives the exit code.

    `current` makes its text from the file `results`; both are in this repository.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the page is out of date")
    check = parser.parse_args().check
    wanted = current()
    if check:
        return int(not page.exists() or page.read_text(encoding="utf-8") != wanted)
    page.write_text(wanted, encoding="utf-8", newline="\n")
    names = [path.relative_to(_ROOT).as_posix() for path in (page, results)]
    sys.stdout.write(f"{names[0]} holds the results of {names[1]}.\n")
    return 0
