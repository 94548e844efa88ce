"""An audit on record: its certificate, and the audit made again from it.

docs/certificate.md explains it, and docs/certificate.schema.json is its JSON Schema.
"""

from __future__ import annotations

from rewriter.certificate.making import certificate_of, certify, of_the_stamped, replayable
from rewriter.certificate.reading import load_certificate, schema
from rewriter.certificate.records import SCHEMA, Certificate, Request
from rewriter.certificate.replaying import Difference, Replay, replay

__all__ = [
    "SCHEMA",
    "Certificate",
    "Difference",
    "Replay",
    "Request",
    "certificate_of",
    "certify",
    "load_certificate",
    "of_the_stamped",
    "replay",
    "replayable",
    "schema",
]
