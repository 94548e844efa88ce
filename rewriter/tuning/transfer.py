"""Records as a JSON file, to carry from one machine to its like; what is not valid is refused as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewriter.errors import BadInput
from rewriter.tuning.entries import PlaceEntry, PlanEntry

SCHEMA = "https://onnx-conv-rewriter/records/1"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_id: Literal["https://onnx-conv-rewriter/records/1"] = Field(alias="schema")
    places: tuple[PlaceEntry, ...]
    plans: tuple[PlanEntry, ...]


def dump(places: Sequence[PlaceEntry], plans: Sequence[PlanEntry]) -> bytes:
    """The JSON text."""
    made = _File(schema=SCHEMA, places=tuple(places), plans=tuple(plans))  # type: ignore[arg-type]  # mypy takes the literal for a str
    return (made.model_dump_json(indent=1, by_alias=True) + "\n").encode()


def load(path: Path) -> tuple[tuple[PlaceEntry, ...], tuple[PlanEntry, ...]]:
    """The records of a file that `dump` wrote.  Raises BadInput naming the first thing that is wrong with it."""
    try:
        found = _File.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"the records file '{path}' does not exist.") from error
    except OSError as error:
        raise BadInput(f"the records file '{path}' cannot be read: {error.strerror or error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"'{path}' holds no tuning records: {where}: {first['msg']}.") from error
    return found.places, found.plans
