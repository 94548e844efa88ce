"""Certificates: what they hold, that they are the same twice, how they are read; each lie in one is noticed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from certificates import PAIRS, Path_, certificate, changed, leaves, one_weight_off, other_value, regrouped, written
from docs import certificate_schema
from graphs import DATA_FILE, exotic_model, grouped_conv, save_with_data, write_exotic_data
from rewriter import BadInput, equivalence
from rewriter.certificate import SCHEMA, Certificate, certificate_of, certify, load_certificate, replay
from rewriter.certificate.digests import array_digest, file_digest
from rewriter.equivalence import AuditOptions, audit
from rewriter.equivalence.records import audit_options
from rewriter.model import Model
from rewriter.options import RunOptions, Tolerance
from rewriter.provenance import provenance
from rewriter.saving import save
from rewriter.session import Runtime


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# What it holds.


def test_it_names_both_files_and_the_file_names_only_its_source() -> None:
    before, after = regrouped()
    found = certificate()
    assert found.before.sha256 == sha256(before.to_bytes()) == provenance(after)["rewriter.source.sha256"]
    assert found.after is not None
    assert found.after.sha256 == sha256(after.to_bytes())
    assert found.before.bytes == len(before.to_bytes())
    assert found.after.sha256.encode() not in after.to_bytes()
    assert (found.verdict, found.grade) == ("equivalent", "finite")


def test_it_holds_what_was_asked_and_what_ran() -> None:
    runtime = Runtime(threads=2, level="basic")
    options = RunOptions(
        runtime=runtime,
        seed=7,
        input_shapes={"x": (2, 8, 6, 6)},
        ranges={"": (-1.0, 2.0)},
        tolerances={"y": Tolerance(rtol=1e-3)},
    )
    found = certify(*regrouped(), options)
    request = found.request
    (entry,) = request.runtimes
    assert (entry.provider, entry.threads, entry.level, entry.provider_options) == ("cpu", 2, "basic", {})
    assert (request.seed, request.full, request.input_shapes) == (7, False, {"x": (2, 8, 6, 6)})
    assert request.audit_options(()) == audit_options(options)
    assert request.run_options == options
    assert found.audits[0].witnesses[0].seed == 7
    versions = found.environment
    assert (versions.onnx, versions.onnxruntime, versions.numpy) == (onnx.__version__, ort.__version__, np.__version__)
    assert versions.processor
    assert found.inputs == ()


def test_what_was_asked_includes_every_option_of_the_auditor() -> None:
    """An option that is added to the auditor and not to the certificate could not be replayed."""
    known = set(certificate().request.model_dump()) - {"runtimes"}
    assert known == set(AuditOptions.__dataclass_fields__) - {"runtime", "samples"}


def test_inputs_of_the_user_are_hashed() -> None:
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)
    found = certify(*regrouped(), RunOptions(samples=({"x": x}, {"x": 2 * x})))
    assert [entry["x"].sha256 for entry in found.inputs] == [sha256(x.tobytes()), sha256((2 * x).tobytes())]
    assert (found.inputs[0]["x"].dtype, found.inputs[0]["x"].shape) == ("float32", (2, 8, 6, 6))
    turned = np.asfortranarray(x)
    assert array_digest(turned) == array_digest(x) != array_digest(x.reshape(2, 8, 36))
    assert array_digest(x.astype(">f4")).sha256 == sha256(x.tobytes())
    assert array_digest(np.array(["a", "bc"], object)).sha256 == sha256(b"a\0bc\0")
    assert array_digest(np.array(["abc", ""], object)) != array_digest(np.array(["a", "bc"], object))


def test_external_data_counts_as_far_as_tensors_refer_to_it(tmp_path: Path) -> None:
    path = save_with_data(grouped_conv(), tmp_path, size_threshold=0)
    data = tmp_path / "m.data"
    refs = sorted(
        (int(found["offset"]), int(found["length"]))
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for found in [{entry.key: entry.value for entry in tensor.external_data}]
    )
    used = b"".join(data.read_bytes()[start : start + length] for start, length in refs)
    digest = file_digest(Model.load(path)).external["m.data"]
    assert (digest.sha256, digest.bytes) == (sha256(used), len(used))
    data.write_bytes(data.read_bytes() + b"of nobody")
    assert file_digest(Model.load(path)).external["m.data"] == digest
    start = refs[1][0]
    data.write_bytes(data.read_bytes()[:start] + b"\x7f" + data.read_bytes()[start + 1 :])
    assert file_digest(Model.load(path)).external["m.data"] != digest
    data.write_bytes(data.read_bytes()[: start + 3])
    with pytest.raises(BadInput, match="ends before the model's tensors do"):
        file_digest(Model.load(path))
    data.unlink()
    with pytest.raises(BadInput, match=r"m\.data' cannot be read"):
        file_digest(Model.load(path))


def test_a_data_file_without_gaps_has_the_hash_of_the_file(tmp_path: Path) -> None:
    write_exotic_data(tmp_path)
    (tmp_path / "m.onnx").write_bytes(exotic_model().SerializeToString())
    digest = file_digest(Model.load(tmp_path / "m.onnx")).external[DATA_FILE]
    assert digest.sha256 == sha256((tmp_path / DATA_FILE).read_bytes())


def test_each_data_file_counts_by_itself_and_each_byte_once(tmp_path: Path) -> None:
    made = grouped_conv()
    for name, location, offset, length in (("o", "a", 4, 8), ("p", "a", 8, 8), ("q", "b", 0, 4), ("r", "a", 20, None)):
        tensor = made.graph.initializer.add(name=name, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))
    content = bytes(range(24))
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    found = file_digest(Model.load(tmp_path / "m.onnx")).external
    assert (found["a"].bytes, found["a"].sha256) == (16, sha256(content[4:16] + content[20:]))
    assert (found["b"].bytes, found["b"].sha256) == (4, sha256(content[:4]))


def test_folders_in_messages_are_left_out(tmp_path: Path) -> None:
    before, after = regrouped()
    save(before, tmp_path / "a.onnx")
    before = Model.load(tmp_path / "a.onnx")
    found = audit(before, after, AuditOptions())
    path = tmp_path / "a.onnx"
    told = found.model_copy(update={"reason": f"Not {path}, nor {path}.data, nor '{tmp_path}/weights/w.bin'."})
    made = certificate_of(told, before, after, RunOptions())
    assert made.audits[0].reason == "Not the original, nor the original.data, nor 'weights/w.bin'."


@pytest.mark.parametrize("name", PAIRS)
def test_the_bytes_are_the_same_each_time_wherever_the_files_are(name: str, tmp_path: Path) -> None:
    """And so hold no time and no path: of one pair, ONNX Runtime's complaint has the path in it."""
    made = []
    for folder in ("one", "another"):
        (tmp_path / folder).mkdir()
        paths = [tmp_path / folder / "a.onnx", tmp_path / folder / f"b-{folder}.onnx"]
        for model, path in zip(PAIRS[name](), paths, strict=True):
            save(model, path)
        before, after = (Model.load(path) for path in paths)
        made.append(certify(before, after, RunOptions()).to_bytes())
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]
    assert b"a.onnx" not in made[0]
    plain = json.loads(made[0])
    assert plain["verdict"] == name
    assert list(plain) == sorted(plain)
    if name == "not_verified":
        assert "the original" in plain["audit"]["reason"]


def test_a_relative_path_is_no_part_of_it_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model, name in zip(PAIRS["not_verified"](), ("a.onnx", "b.onnx"), strict=True):
        save(model, Path(name))
    found = certify(Model.load("a.onnx"), Model.load("b.onnx"), RunOptions()).to_bytes()
    assert b"a.onnx" not in found
    assert str(tmp_path).encode() not in found


# How it is read.


@pytest.mark.parametrize("name", PAIRS)
def test_reading_gives_what_was_written(name: str, tmp_path: Path) -> None:
    found = certificate(name)
    path = tmp_path / "c.json"
    path.write_bytes(found.to_bytes())
    assert load_certificate(path) == found
    assert load_certificate(path).to_bytes() == found.to_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"{", "is no certificate: it is not JSON"),
        (b"\xff", "is no certificate: it is not JSON"),
        (b"[" * 100_000, "is no certificate: it is not JSON"),
        (b"[]", "is no certificate: give what `rewriter audit --certificate` wrote"),
        (b"{}", "is no certificate: give what `rewriter audit --certificate` wrote"),
        (b'{"schema": "other/2"}', f"has the schema 'other/2', and this version reads only '{SCHEMA}'"),
        (f'{{"schema": "{SCHEMA}"}}'.encode(), "is damaged: at 'verdict', field required"),
    ],
)
def test_what_is_no_certificate_is_refused(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        load_certificate(path)
    assert says in str(error.value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


Edit = Callable[[dict[str, Any]], Any]

CONTRADICTIONS: dict[str, tuple[Edit, str]] = {
    "verdict": (lambda c: c.update(verdict="different", grade=None), "it says 'different', and its audit 'equivalent'"),
    "grade": (lambda c: c.update(grade="bitwise"), "its grade is 'bitwise', which is not its audit's"),
    "both grades": (
        lambda c: (c.update(grade="exact"), c["audit"].update(grade="exact")),
        "it claims the grade 'exact', and a region of it only 'finite'",
    ),
    "a region that differs": (
        lambda c: c["audit"]["regions"][0].update(verdict="different", grade=None),
        "the region of 'c' is said to be different, although no level refutes it",
    ),
    "a region nothing is known of": (
        lambda c: c["audit"]["regions"][0].update(verdict="not_verified", grade=None),
        "it says 'equivalent', although a region is not",
    ),
    "a level that refutes": (
        lambda c: c["audit"]["regions"][0]["levels"][1].update(outcome="fail"),
        "the region of 'c' is said to be equivalent, although L2 refutes it",
    ),
    "no level": (
        lambda c: c["audit"]["regions"][0].update(levels=[]),
        "the region of 'c' is said to be equivalent, although no level shows it",
    ),
    "the whole refuted": (
        lambda c: c["audit"]["levels"][1].update(outcome="fail"),
        "it says 'equivalent', although L4 refutes it",
    ),
    "another original": (lambda c: c["before"].update(sha256="0" * 64), "its audit is of other files"),
    "files exchanged": (lambda c: c.update(before=c["after"], after=c["before"]), "its audit is of other files"),
    "another seed": (lambda c: c["request"].update(seed=1), "its audit has the seed 0, and 1 was asked for"),
    "another level": (
        lambda c: c["request"]["runtimes"][0].update(level="basic"),
        "its audit ran on cpu in a way that was not asked for",
    ),
    "one model": (lambda c: c.update(after=None), "it has one audit, which takes two models and one provider"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused(name: str, tmp_path: Path) -> None:
    edit, says = CONTRADICTIONS[name]
    plain = certificate().to_dict()
    edit(plain)
    with pytest.raises(BadInput) as error:
        load_certificate(written(plain, tmp_path))
    assert f"contradicts itself: {says}" in str(error.value)


def test_an_audit_of_something_else_makes_no_certificate() -> None:
    before, after = regrouped()
    found = audit(before, after, AuditOptions())
    assert certificate_of(found, before, after, RunOptions()) == certificate()
    with pytest.raises(ValueError, match="of other models"):
        certificate_of(found, before, one_weight_off()[1], RunOptions())
    with pytest.raises(ValueError, match="seed 0, and 3 was asked for"):
        certificate_of(found, before, after, RunOptions(seed=3))


# Each lie is noticed: every leaf of the JSON changed by itself, one after the other.

NOTES = {f"environment.{name}" for name in ("numpy", "onnx", "onnxruntime", "processor", "rewriter")}
"""Other versions may come to the same verdict."""
MADE_SO = {"request.perturbed_regions", "audit.levels.1.figures.float64_runs"}
"""What may come out the same: the audit is made with the other value, so that nothing in the certificate is untrue.

How many runs are held against float64 depends on the machine's speed, and is a note.
"""
MADE_SO_UNLESS_EQUIVALENT = MADE_SO | {"request.draws", "request.full"}


def name_of(at: Path_) -> str:
    return ".".join(map(str, at))


@pytest.fixture
def audited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits with equal options are made once: what is changed in a certificate is seldom what is asked."""
    real = equivalence.audit
    kept: dict[str, equivalence.Audit] = {}

    @functools.wraps(real)
    def cached(before: Model, after: Model, options: AuditOptions, **more: Any) -> equivalence.Audit:
        key = repr((before.sha256, after.sha256, options))
        if key not in kept:
            kept[key] = real(before, after, options, **more)
        return kept[key]

    monkeypatch.setattr(equivalence, "audit", cached)


def noticed(plain: dict[str, Any], folder: Path, pair: tuple[Model, Model]) -> str:
    """What is said of a changed certificate; empty where it is taken for right."""
    try:
        loaded = load_certificate(written(plain, folder))
    except BadInput as error:
        return str(error)
    found = replay(loaded, *pair)
    if found.same:
        return ""
    assert found.exit_code != 0
    return found.conclusion


@pytest.mark.usefixtures("audited_once")
@pytest.mark.parametrize(("name", "full"), [*((name, False) for name in PAIRS), ("equivalent", True)])
def test_every_other_value_is_noticed(name: str, full: bool, tmp_path: Path) -> None:
    plain, pair = certificate(name, full).to_dict(), PAIRS[name]()
    assert noticed(plain, tmp_path, pair) == ""
    found = {name_of(at): noticed(changed(plain, at, other_value(leaf)), tmp_path, pair) for at, leaf in leaves(plain)}
    assert len(found) > 60
    unnoticed = {where for where, said in found.items() if not said}
    assert unnoticed <= NOTES | (MADE_SO if name == "equivalent" else MADE_SO_UNLESS_EQUIVALENT)


@pytest.mark.parametrize("name", ["draws", "perturbed_regions"])
def test_an_audit_that_looks_less_closely_is_refused(name: str, tmp_path: Path) -> None:
    plain = changed(certificate().to_dict(), ("request", name), 3)
    with pytest.raises(BadInput, match=f"is damaged: at 'request.{name}', input should be greater than or equal to"):
        load_certificate(written(plain, tmp_path))


@pytest.mark.usefixtures("audited_once")
def test_every_loss_is_noticed(tmp_path: Path) -> None:
    """A field or entry less: but those with nothing in them, which is what is read where they are missing."""
    plain, pair = certificate().to_dict(), PAIRS["equivalent"]()
    tried = 0
    for at in sorted({way[:size] for way, _ in leaves(plain) for size in range(1, len(way) + 1)}, key=repr):
        lost = json.loads(json.dumps(plain))
        inner: Any = lost
        for key in at[:-1]:
            inner = inner[key]
        del inner[at[-1]]
        try:
            same = load_certificate(written(lost, tmp_path)).to_dict() == plain
        except BadInput:
            continue
        if same:
            continue
        tried += 1
        assert noticed(lost, tmp_path, pair), name_of(at)
    assert tried > 10


# The schema; that certificates are valid by it is in test_certificate_schema.py.


def test_the_published_schema_is_that_of_the_records() -> None:
    assert certificate_schema.stale() == []


def test_a_schema_that_is_not_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_schema, "PAGE", tmp_path / "certificate.schema.json")
    (line,) = certificate_schema.stale()
    assert line.endswith("run python -m docs.build")
    certificate_schema.write()
    assert certificate_schema.stale() == []


def test_the_documentation_names_every_field() -> None:
    text = Path(certificate_schema.__file__).with_name("certificate.md").read_text(encoding="utf-8")
    for name, field in Certificate.model_fields.items():
        assert f"`{field.alias or name}`" in text
    assert SCHEMA in text
