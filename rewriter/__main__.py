"""`python -m rewriter`: the same as the command `rewriter`."""

from __future__ import annotations

import sys

from rewriter.cli import main

if __name__ == "__main__":
    sys.exit(main())
