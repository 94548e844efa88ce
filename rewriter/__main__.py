"""The command `rewriter`, and `python -m rewriter`: loads the command line such that Ctrl-C is heard from the start."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line on this process's arguments; returns the exit code, 130 after Ctrl-C even while loading."""
    try:
        from rewriter.cli import main as run

        return run()
    except BaseException as error:
        from rewriter.cli_show import INTERRUPTED_SENTENCE, complain, interrupted

        if not interrupted(error):
            raise
        complain(INTERRUPTED_SENTENCE)
        return 130


if __name__ == "__main__":
    sys.exit(main())
