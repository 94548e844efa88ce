"""Follow the channels of every model of the zoo, into benchmarks/results/zoo_channels.json.

    python -m benchmarks.zoo_channels

For each model: how many channel components there are, how many are free, why the others are not, and how many
convolutions miss the fast path for their channels with blocks of 8 and of 16.  Nothing is run or timed: every machine
gives the same.  docs/channels.md is built from the result by `python -m docs.build`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.zoo.refill import zoo_model, zoo_names
from rewriter.channel_survey import ChannelSurvey, survey_channels
from rewriter.channels import Component
from rewriter.graph import Graph
from rewriter.model import Model

RESULTS = Path(__file__).parent / "results" / "zoo_channels.json"
BLOCKS = (8, 16)
"""Of processors with AVX2, and with AVX-512."""


def main() -> int:
    """Follow all of them, and write the result."""
    models = [facts(name) for name in zoo_names()]
    report = {"blocks": list(BLOCKS), "models": models}
    RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{RESULTS.name}: {len(models)} models")
    return 0


def facts(name: str) -> dict[str, Any]:
    """What is said about one model."""
    graph = Graph(Model.load(zoo_model(name)))
    surveys = [survey_channels(graph, block) for block in BLOCKS]
    one = surveys[0]
    return {
        "model": name,
        "convolutions": one.convolutions,
        "bands": len(one.channels.bands),
        "components": len(one.components),
        "free": len(one.free),
        "slow": [len(survey.slow) for survey in surveys],
        "slow_and_free": [sum(_is_free(survey, conv.component) for conv in survey.slow) for survey in surveys],
        "stops": stops(one.components),
    }


def _is_free(survey: ChannelSurvey, number: int | None) -> bool:
    return number is not None and survey.components[number].free


def stops(components: Iterable[Component]) -> list[dict[str, Any]]:
    """Each reason that stops components, without names, with how many it stops; the most frequent first."""
    found: dict[str, int] = {}
    for component in components:
        for reason in dict.fromkeys(plain(stop.reason) for stop in component.stops):
            found[reason] = found.get(reason, 0) + 1
    return [{"reason": reason, "components": found[reason]} for reason in sorted(found, key=lambda key: -found[key])]


def plain(reason: str) -> str:
    """A reason without the name of a tensor at its end or in it."""
    return re.sub(r"'[^']*'", "'…'", re.sub(r" \('[^']*'\)$", "", reason))


if __name__ == "__main__":
    raise SystemExit(main())
