"""Write a model to a file: `python -m models NAME -o FILE` (`--list` shows the names).

Exit codes: 0 written, 2 bad usage or a file that cannot be written, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from models.catalogue import OPEN_BATCH, Options, build, catalogue
from models.emit import NEWEST_OPSET, OLDEST_OPSET
from models.errors import ModelError
from models.write import write_model

_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (argparse itself exits with 2 on bad usage)."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.list:
        width = max(len(name) for name in catalogue())
        print("\n".join(f"{entry.name:{width}}  {entry.description}" for entry in catalogue().values()))
        return 0
    if asked.name is None or asked.output is None:
        parser.error("give a model name and -o FILE, or --list")
    try:
        model = build(asked.name, Options(asked.seed, asked.batch, asked.opset, asked.float16))
        size = write_model(model, asked.output)
    except ModelError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot write {asked.output}: {error.strerror or error}")
    print(f"{asked.output}: {size / 1e6:.1f} MB, {len(model.graph.node)} nodes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models", description="Write a reference model to an ONNX file.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="mobilenet_v2, resnext50:FORM, zoo:NAME (see --list)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to write; its folder is created")
    parser.add_argument("--list", action="store_true", help="list the names and exit")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    parser.add_argument("--batch", type=_batch, help=f"batch size, or {OPEN_BATCH} to leave it open (default: 1)")
    parser.add_argument("--opset", type=int, help=f"ONNX operator set, {OLDEST_OPSET} to {NEWEST_OPSET} (default: 17)")
    parser.add_argument("--float16", action="store_true", help="weights, inputs and outputs in float16")
    return parser


def _batch(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _fail(message: str) -> int:
    print(f"models: {message}", file=sys.stderr)
    return _USAGE_ERROR


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
