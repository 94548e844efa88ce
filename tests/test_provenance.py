"""The stamp: three entries behind everything else, the same for the same source, version and passes, and no more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import onnx
import pytest
from onnx import helper

import rewriter
from graphs import UNUSUAL, exotic_model, grouped_conv, node, unusual, write_exotic_data
from rewriter import provenance as module
from rewriter.equivalence import AuditOptions, audit
from rewriter.equivalence.structural import compare_structure
from rewriter.model import Edit, Model
from rewriter.propose import Applied, Step, sweep
from rewriter.provenance import KEYS, provenance, stamp, tool_version
from rewriter.registry import pass_named
from rewriter.rule import Settings
from rewriter.saving import save
from untouched import STAMP, assert_stamped, assert_untouched, raw_fields, without_stamp

MORE = Edit(inserted={0: (node("Relu", ["x"], ["more"]),)})
"""Any change at all."""


def regrouped(source: Model, factor: int = 2) -> tuple[Model, list[Applied]]:
    after, applied, _ = sweep(source, Step(pass_named("regroup"), {"factor": factor}), {})
    assert applied
    return after, applied


def values(source: Model, passes: str) -> list[str]:
    return [tool_version(), passes, hashlib.sha256(source.to_bytes()).hexdigest()]


def test_the_keys_are_what_is_published() -> None:
    assert set(STAMP) == KEYS
    assert STAMP == ("rewriter.version", "rewriter.passes", "rewriter.source.sha256")


def test_a_stamp_is_all_that_is_added() -> None:
    source = Model.load(grouped_conv())
    after, applied = regrouped(source)
    stamped = stamp(after, ["regroup", "absorb-scale", "regroup"], source)
    assert_stamped(after.to_bytes(), stamped.to_bytes(), values(source, "regroup,absorb-scale"))
    assert_untouched(source.to_bytes(), without_stamp(stamped.to_bytes())[0], applied[0].rewrite.edit)
    assert dict(provenance(stamped)) == dict(zip(STAMP, values(source, "regroup,absorb-scale"), strict=True))
    assert provenance(after) == provenance(source) == {}
    onnx.checker.check_model(stamped.to_proto())


@pytest.mark.parametrize("encoding", UNUSUAL)
def test_every_other_byte_stays_in_any_encoding(encoding: str) -> None:
    source = Model.load(unusual(encoding))
    changed = source.splice(MORE)
    stamped = stamp(changed, ["regroup"], source)
    assert_stamped(changed.to_bytes(), stamped.to_bytes(), values(source, "regroup"))
    parsed = onnx.ModelProto.FromString(stamped.to_bytes())
    assert [entry.key for entry in parsed.metadata_props] == ["origin", "naïve", *STAMP]
    again = stamp(stamped.splice(MORE), ["fold-scale"], stamped)
    assert_stamped(stamped.splice(MORE).to_bytes(), again.to_bytes(), values(stamped, "fold-scale"))
    parsed = onnx.ModelProto.FromString(again.to_bytes())
    assert [entry.key for entry in parsed.metadata_props] == ["origin", "naïve", *STAMP]


def test_a_model_that_did_not_change_gets_none(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(grouped_conv().SerializeToString(deterministic=True))
    source = Model.load(path)
    assert stamp(source, [], source) is source
    assert stamp(source, ["regroup"], source) is source
    copy = Model.load(path.read_bytes())
    assert stamp(copy, ["regroup"], source) is copy
    save(stamp(source, ["regroup"], source), tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == path.read_bytes()


def test_a_stamped_model_that_a_later_run_leaves_keeps_its_stamp() -> None:
    source = Model.load(grouped_conv())
    first = stamp(regrouped(source)[0], ["regroup"], source)
    loaded = Model.load(first.to_bytes())
    assert stamp(loaded, [], loaded).to_bytes() == first.to_bytes()


def test_the_same_run_gives_the_same_bytes() -> None:
    source = Model.load(grouped_conv())
    one, other = (stamp(regrouped(source)[0], ["regroup"], source).to_bytes() for _ in range(2))
    assert one == other


def test_a_second_run_describes_itself_and_names_the_file_it_read() -> None:
    source = Model.load(grouped_conv())
    first = Model.load(stamp(regrouped(source)[0], ["regroup"], source).to_bytes())
    changed = first.splice(MORE)
    second = stamp(changed, ["depthwise-sum-to-grouped"], first)
    assert_stamped(changed.to_bytes(), second.to_bytes(), values(first, "depthwise-sum-to-grouped"))
    assert provenance(second)["rewriter.source.sha256"] == first.sha256 != source.sha256
    assert sum(entry.key in KEYS for entry in second.to_proto().metadata_props) == 3


def test_a_stamp_between_other_entries_goes_and_they_stay() -> None:
    made = exotic_model()
    del made.metadata_props[:]
    for key in ("rewriter.passes", "owner", "rewriter.version", "rewriter.versions", "rewriter.source.sha256", "last"):
        made.metadata_props.add(key=key, value=f"old {key}")
    source = Model.load(made)
    stamped = stamp(source.splice(MORE), ["regroup"], source)
    found = [(entry.key, entry.value) for entry in stamped.to_proto().metadata_props]
    kept = [(key, f"old {key}") for key in ("owner", "rewriter.versions", "last")]
    assert found == [*kept, *zip(STAMP, values(source, "regroup"), strict=True)]


def test_a_stamp_before_the_graph_goes_too() -> None:
    source = Model.load(grouped_conv())
    fields = raw_fields(stamp(regrouped(source)[0], ["regroup"], source).to_bytes())
    moved = Model.load(b"".join(field.raw for field in sorted(fields, key=lambda field: field.number == 7)))
    assert provenance(moved)
    changed = moved.splice(MORE)
    again = stamp(changed, ["fold-scale"], moved)
    assert_stamped(changed.to_bytes(), again.to_bytes(), values(moved, "fold-scale"))


def test_a_change_without_a_pass_is_a_mistake_of_the_caller() -> None:
    source = Model.load(grouped_conv())
    with pytest.raises(ValueError, match="no pass is named"):
        stamp(source.splice(MORE), [], source)


def test_the_version_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", lambda _name: "1.2.3")
    assert tool_version() == "1.2.3"
    monkeypatch.setattr(module, "version", missing)
    assert tool_version() == "unknown"


def test_a_stamped_model_keeps_its_data_and_is_not_written_over_its_source(tmp_path: Path) -> None:
    write_exotic_data(tmp_path)
    path = tmp_path / "exotic.onnx"
    path.write_bytes(exotic_model().SerializeToString(deterministic=True))
    source = Model.load(path)
    stamped = stamp(regrouped(source)[0], ["regroup"], source)
    assert stamped.original is source
    (tmp_path / "out").mkdir()
    save(stamped, tmp_path / "out" / "m.onnx")
    assert (tmp_path / "out" / "m.onnx").read_bytes() == stamped.to_bytes()
    onnx.checker.check_model(tmp_path / "out" / "m.onnx")


@pytest.mark.parametrize("stamped", [True, False])
def test_a_file_that_was_written_is_its_source_but_for_the_rewrites_and_the_stamp(
    tmp_path: Path, stamped: bool
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(grouped_conv().SerializeToString(deterministic=True))
    chosen: dict[str, Settings] = {"regroup": {"factor": 2}}
    rewriter.rewrite(path, ["regroup"], settings=chosen, stamped=stamped).save(tmp_path / "out.onnx")
    source = Model.load(path)
    written = (tmp_path / "out.onnx").read_bytes()
    bare, entries = without_stamp(written)
    assert_untouched(path.read_bytes(), bare, regrouped(source)[1][0].rewrite.edit)
    assert [value for _, value in entries] == (values(source, "regroup") if stamped else [])
    if stamped:
        assert_stamped(bare, written, values(source, "regroup"))


def test_a_file_in_which_nothing_applied_is_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(grouped_conv().SerializeToString(deterministic=True))
    rewriter.rewrite(path, ["merge-split-groups"]).save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


# What the auditor says of it.


def test_the_auditor_has_no_word_on_a_stamp_and_one_on_other_metadata() -> None:
    source = Model.load(grouped_conv())
    after, _ = regrouped(source)
    stamped = stamp(after, ["regroup"], source)
    assert compare_structure(source, stamped)[1] == compare_structure(source, after)[1] == ()
    assert compare_structure(stamped, source)[1] == ()
    proto = stamped.to_proto()
    proto.metadata_props.add(key="rewriter.versions", value="not ours")
    assert compare_structure(source, Model.load(proto))[1] == ("The metadata of the model differs.",)


def test_a_stamp_alone_changes_nothing_that_is_computed() -> None:
    source = Model.load(grouped_conv())
    proto = source.to_proto()
    helper.set_model_props(proto, dict(zip(STAMP, values(source, "regroup"), strict=True)))
    found = audit(source, Model.load(proto), AuditOptions())
    assert (found.verdict, found.grade, found.notes) == ("equivalent", "bitwise", ())


# The check itself: each disguise of a loss is noticed.

Tamper = Callable[[bytes, bytes], bytes]


def _entry(key: str, value: str) -> bytes:
    body = onnx.StringStringEntryProto(key=key, value=value).SerializeToString(deterministic=True)
    return bytes([14 << 3 | 2, len(body)]) + body


TAMPERED: dict[str, Tamper] = {
    "no stamp": lambda before, _: before,
    "another value": lambda _, after: after.replace(b"regroup", b"regrouq"),
    "another key": lambda _, after: after.replace(b"rewriter.passes", b"rewriter.passez"),
    "an entry more": lambda _, after: after + _entry("more", "x"),
    "a stamp twice": lambda _, after: after + _entry("rewriter.version", "x"),
    "in front": lambda before, after: after[len(before) :] + before,
    "another order": lambda before, after: before + b"".join(f.raw for f in raw_fields(after[len(before) :])[::-1]),
    "another byte": lambda before, after: after.replace(b"org.example", b"org.exbmple"),
    "a new encoding": lambda before, after: after.replace(b"\x22\x0borg.example", b"\x22\x8b\x00org.example"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_the_check_notices(name: str) -> None:
    source = Model.load(exotic_model())
    changed = source.splice(MORE)
    before, after = changed.to_bytes(), stamp(changed, ["regroup"], source).to_bytes()
    assert_stamped(before, after, values(source, "regroup"))
    tampered = TAMPERED[name](before, after)
    assert tampered != after
    with pytest.raises(AssertionError):
        assert_stamped(before, tampered, values(source, "regroup"))
