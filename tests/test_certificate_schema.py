"""The published schema, put to an independent validator: certificates are valid by it, and what is not one is not."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from certificates import PAIRS, certificate, changed, leaves, regrouped, rewritten
from docs.certificate_schema import PAGE
from fake_cuda import CUDA, fake_cuda
from rewriter.certificate import certificate_of, certify
from rewriter.equivalence import AuditOptions, cross_audit
from rewriter.options import RunOptions, Tolerance
from rewriter.session import Runtime
from separable_models import separable_models
from test_passes.test_split_separable_approximate import ALLOWED, network, sample

SCHEMA: dict[str, Any] = json.loads(PAGE.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def complaints(made: bytes | dict[str, Any]) -> list[str]:
    plain = json.loads(made) if isinstance(made, bytes) else made
    return [error.message for error in VALIDATOR.iter_errors(plain)]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["additionalProperties"] is False


def test_every_field_has_an_explanation_or_a_record_that_has_one() -> None:
    for name, record in SCHEMA["$defs"].items():
        assert record["description"], name
    for name in ("Request", "FileDigest", "OutputAudit", "RegionAudit"):
        described = [entry for entry in SCHEMA["$defs"][name]["properties"].values() if "description" in entry]
        assert described, name


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_certificates_are_valid(name: str, full: bool) -> None:
    assert complaints(certificate(name, full).to_bytes()) == []


def test_those_of_several_providers_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    before, after = regrouped()
    runtimes = [Runtime(), CUDA]
    both = cross_audit([before, after], runtimes, AuditOptions())
    assert complaints(certificate_of(both, before, after, RunOptions(), runtimes).to_bytes()) == []
    one = cross_audit([before], runtimes, AuditOptions())
    assert complaints(certificate_of(one, before, None, RunOptions(), runtimes).to_bytes()) == []


def test_those_with_inputs_tolerances_and_approximations_are_valid() -> None:
    made = network("float[2,16,20,20]")
    options = RunOptions(
        allow=ALLOWED,
        samples=(sample(),),
        ranges={"x": (-1.0, 1.0)},
        tolerances={"y": Tolerance(rtol=0.1), "": Tolerance(atol=1e-3)},
    )
    before, after, found = rewritten(made, "split-separable", {"max-error": 0.2}, options)
    assert complaints(certify(before, after, options, found).to_bytes()) == []
    before, after, found = rewritten(separable_models()["low rank"], "split-separable", {})
    assert complaints(certify(before, after, RunOptions(), found).to_bytes()) == []


def test_what_json_has_no_numbers_for_is_valid_as_a_word() -> None:
    plain = certificate().to_dict()
    at = ("audit", "outputs", 0, "ratio")
    for word in ("inf", "-inf", "nan"):
        assert complaints(changed(plain, at, word)) == []
    assert complaints(changed(plain, at, "infinite"))


def test_every_value_of_another_type_is_refused() -> None:
    plain = certificate().to_dict()
    tried = [(at, leaf) for at, leaf in leaves(plain) if "figures" not in at]
    assert len(tried) > 60
    for at, _ in tried:
        assert complaints(changed(plain, at, ["a list"])), at


def test_every_unknown_field_is_refused() -> None:
    plain = certificate().to_dict()
    for at in ((), ("before",), ("request",), ("environment",), ("audit",), ("audit", "outputs", 0)):
        assert complaints(changed(plain, (*at, "seconds"), 1.5)), at


@pytest.mark.parametrize("name", ["schema", "verdict", "before", "after", "request", "inputs", "environment", "audit"])
def test_every_field_is_required(name: str) -> None:
    plain = certificate().to_dict()
    del plain[name]
    assert complaints(plain)
