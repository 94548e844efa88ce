"""Pad and permute the channels of random networks at random: the same bits as before, or a failure with its seed.

    python -m benchmarks.channels [--cases 10000] [--first 0]

Networks and embeddings are drawn from the seed (tests/channel_networks.py, tests/channel_draws.py), so that a case that
fails can be run again alone: `--cases 1 --first SEED`.  The exit status is 1 where one fails.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parents[1] / "tests")
if _TESTS not in sys.path:  # where pytest has not put it
    sys.path.append(_TESTS)


@dataclass
class Result:
    """What became of a number of cases."""

    cases: int = 0
    moved: int = 0
    """Cases in which the channels of some band moved."""
    bands: int = 0
    stuck: int = 0
    """Components left as they were, for want of consistent places."""
    flat: int = 0
    """Cases with an output that is the same everywhere."""
    operators: Counter[str] = field(default_factory=Counter)
    """Nodes made again, by operator."""
    failures: list[tuple[int, str]] = field(default_factory=list)


def main() -> int:
    """Run the cases, and say how many there were, what they moved, and which failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000, help="how many (default 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    arguments = parser.parse_args()
    result = campaign(range(arguments.first, arguments.first + arguments.cases))
    for seed, problem in result.failures:
        print(f"case {seed}: {problem}")
    print(f"{result.cases} cases: channels moved in {result.moved}, {result.bands} bands; made again:")
    print(", ".join(f"{name} {count}" for name, count in result.operators.most_common()))
    print(f"{result.stuck} components left as they were, {result.flat} cases with an output that shows nothing")
    print(f"{len(result.failures)} failed")
    return int(bool(result.failures) or not result.moved)


def campaign(seeds: Iterable[int]) -> Result:
    """The case of each seed; one that raises has failed."""
    from channel_draws import run_case

    result = Result()
    for seed in seeds:
        result.cases += 1
        try:
            case = run_case(seed)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this seed
            result.failures.append((seed, f"{type(error).__name__}: {error}"))
            continue
        result.moved += bool(case.moved)
        result.bands += case.moved
        result.stuck += case.stuck
        result.flat += case.flat
        result.operators.update(case.operators)
        if case.problem:
            result.failures.append((seed, case.problem))
    return result


if __name__ == "__main__":
    sys.exit(main())
