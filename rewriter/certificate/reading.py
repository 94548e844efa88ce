"""Reading a certificate that comes from elsewhere, and the JSON Schema that says what one looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from rewriter.certificate.records import SCHEMA, Certificate
from rewriter.errors import BadInput

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def load_certificate(path: Path) -> Certificate:
    """Read a certificate.  Raises BadInput where the file is none, or contradicts itself."""
    try:
        plain = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"the certificate '{path}' does not exist.") from error
    except OSError as error:
        raise BadInput(f"the certificate '{path}' cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{path}' is no certificate: it is not JSON ({error}).") from error
    if not isinstance(plain, dict) or "schema" not in plain:
        raise BadInput(f"'{path}' is no certificate: give what `rewriter audit --certificate` wrote.")
    if plain["schema"] != SCHEMA:
        raise BadInput(f"'{path}' has the schema {plain['schema']!r}, and this version reads only {SCHEMA!r}.")
    try:
        return Certificate.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        raise BadInput(f"the certificate '{path}' {_said(error)}.") from error


def schema() -> dict[str, Any]:
    """The JSON Schema of certificates, as docs/certificate.schema.json has it."""
    made = Certificate.model_json_schema(mode="serialization", by_alias=True)
    titled = {"$schema": _DIALECT, "$id": SCHEMA, **made, "title": "Certificate of an equivalence audit"}
    found = _with_infinities(titled)
    assert isinstance(found, dict)
    return found


def _with_infinities(part: Any) -> Any:
    """With the strings that stand for what JSON has no numbers for, wherever a number is allowed; without titles."""
    if isinstance(part, list):
        return [_with_infinities(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "number":
        return {"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf", "nan"]}]}
    bare = {key: value for key, value in part.items() if key != "title" or "$schema" in part or isinstance(value, dict)}
    return {key: _with_infinities(value) for key, value in bare.items()}


def _said(error: ValidationError) -> str:
    """The first of pydantic's complaints as a clause."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        return f"contradicts itself: {first['msg'].removeprefix('Value error, ')}"
    return f"is damaged: at '{where}', {first['msg'][:1].lower()}{first['msg'][1:]}"
