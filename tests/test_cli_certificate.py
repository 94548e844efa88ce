"""Certificates, their replay, reproductions, and what rewritten models say of themselves, as commands and in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import rewriter
import rewriter.api
from audited_models import AUDIT, REWRITE, report, sample, write_models
from culprits import OneWeightOff, Scaled, chain
from fake_cuda import fake_cuda
from rewriter.cli import main
from rewriter.equivalence import Audit
from rewriter.errors import BadInput, Different, NotVerified

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the models to audit."""
    monkeypatch.chdir(tmp_path)
    return write_models(tmp_path)


def test_a_certificate_is_replayed(folder: Path, capsys: Captured) -> None:
    assert main([*AUDIT, "--seed", "7", "--certificate", "c.json"]) == 0
    assert "Certificate: c.json" in capsys.readouterr().out
    first = Path("c.json").read_bytes()
    assert json.loads(first)["request"]["seed"] == 7
    replay = ["audit", "net.onnx", "out.onnx", "--replay", "c.json"]
    assert main([*replay, "--certificate", "again.json", "--report", "r.json"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("REPRODUCED | equivalent (finite), on the same files with the same inputs.")
    assert Path("again.json").read_bytes() == first
    assert report()["verdict"] == "equivalent"
    assert main([*replay, "--certificate", "c.json"]) == 2
    assert main([*replay, "--seed", "7"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: --seed has no effect with --replay")
    assert Path("c.json").read_bytes() == first


def test_a_certificate_with_data_of_the_users_own_needs_them(folder: Path, capsys: Captured) -> None:
    np.savez("x.npz", input=sample(0))
    assert main([*AUDIT, "--inputs", "x.npz", "--certificate", "c.json", "-q"]) == 0
    replay = ["audit", "net.onnx", "out.onnx", "--replay", "c.json", "-q"]
    assert main(replay) == 3
    assert main([*replay, "--inputs", "x.npz"]) == 0
    np.savez("x.npz", input=sample(1))
    capsys.readouterr()
    assert main([*replay, "--inputs", "x.npz"]) == 3
    assert capsys.readouterr().out.startswith("NOT REPRODUCED | the inputs given are not those of the certificate")


def test_a_certificate_of_other_files_is_not_reproduced(folder: Path, capsys: Captured) -> None:
    assert main([*AUDIT, "--certificate", "c.json", "-q"]) == 0
    capsys.readouterr()
    arguments = [
        "audit",
        "net.onnx",
        "wrong.onnx",
        "--replay",
        "c.json",
        "--report",
        "r.json",
        "--certificate",
        "d.json",
    ]
    assert main(arguments) == 3
    said = capsys.readouterr().out
    assert said.startswith("No certificate is written: the audit could not be made again.\n")
    assert said.splitlines()[-1].startswith("NOT REPRODUCED | B is not the certificate's rewritten model")
    assert (report()["verdict"], report()["audit"]) == ("not_verified", None)
    assert not Path("d.json").exists()


def test_a_forged_certificate_is_found_out(folder: Path, capsys: Captured) -> None:
    """One that says that a wrong rewrite is equivalent, with all else as an honest one has it."""
    assert main([*AUDIT, "--certificate", "c.json", "-q"]) == 0
    assert main(["audit", "net.onnx", "wrong.onnx", "--fast", "--certificate", "d.json", "-q"]) == 1
    good, bad = json.loads(Path("c.json").read_text()), json.loads(Path("d.json").read_text())
    good["after"] = bad["after"]
    good["audit"]["after_sha256"] = bad["audit"]["after_sha256"]
    Path("forged.json").write_text(json.dumps(good))
    capsys.readouterr()
    assert main(["audit", "net.onnx", "wrong.onnx", "--replay", "forged.json", "-q"]) == 1
    assert capsys.readouterr().out.startswith(
        "NOT REPRODUCED | the certificate says equivalent (finite), this run diff"
    )


def test_a_rewritten_model_comes_with_its_certificate_and_says_what_made_it(folder: Path, capsys: Captured) -> None:
    Path("out.onnx").unlink()
    assert main([*REWRITE, "--certificate", "c.json"]) == 0
    told = {entry.key: entry.value for entry in onnx.load("out.onnx").metadata_props}
    assert told.keys() == {"rewriter.version", "rewriter.passes", "rewriter.source.sha256"}
    assert told["rewriter.passes"] == "regroup"
    assert json.loads(Path("c.json").read_text())["before"]["sha256"] == told["rewriter.source.sha256"]
    assert main(["audit", "net.onnx", "out.onnx", "--replay", "c.json", "-q"]) == 0
    with_entries = Path("out.onnx").read_bytes()
    assert main([*REWRITE, "--no-provenance"]) == 0
    assert not onnx.load("out.onnx").metadata_props
    assert with_entries.startswith(Path("out.onnx").read_bytes())


def test_nothing_is_certified_where_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def different(before: Any, after: Any, options: Any, **more: Any) -> Audit:
        return rewriter.equivalence.ladder.audit(before, after, options, **more).model_copy(
            update={"verdict": "different", "reason": "Pretended."}
        )

    monkeypatch.setattr("rewriter.remake.equivalence.audit", different)
    Path("out.onnx").unlink()
    assert main([*REWRITE, "--certificate", "c.json", "--report", "r.json"]) == 1
    assert not Path("out.onnx").exists()
    assert not Path("c.json").exists()
    assert report()["reason"] == "Pretended."
    with pytest.raises(Different, match="there is no certificate: "):
        _ = rewriter.rewrite("net.onnx", ["regroup"]).certificate


def test_the_same_from_python(folder: Path) -> None:
    made = rewriter.rewrite("net.onnx", ["regroup"], stamped=False)
    made.save("plain.onnx")
    assert not onnx.load("plain.onnx").metadata_props
    assert made.certificate.verdict == "equivalent"
    assert rewriter.replay(made.certificate, "net.onnx", "plain.onnx").same
    options = rewriter.RunOptions(samples=[{"input": sample(0)}], tolerances={"logits": rewriter.Tolerance(0, 1e-9)})
    found = rewriter.audit("net.onnx", "out.onnx", options)
    assert found.outputs[0].within_tolerance is False
    certified = rewriter.certify(found, "net.onnx", "out.onnx", options)
    Path("c.json").write_bytes(certified.to_bytes())
    assert rewriter.replay("c.json", "net.onnx", "out.onnx", options.samples).same
    assert not rewriter.replay("c.json", "net.onnx", "out.onnx").same
    with pytest.raises(BadInput, match="the audit is of other models"):
        rewriter.certify(found, "net.onnx", "wrong.onnx", options)


def test_not_verified_is_no_certificate_either() -> None:
    made = rewriter.Result.__new__(rewriter.Result)
    object.__setattr__(made, "report", type("R", (), {"verdict": "not_verified", "accepted": False, "reason": "x"}))
    with pytest.raises(NotVerified, match="there is no certificate: x"):
        made.certify()


@pytest.fixture
def faulty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain of three convolutions, and a pass that gets the second one wrong."""
    Path("chain.onnx").write_bytes(chain(3).to_bytes())
    monkeypatch.setattr("rewriter.api.pass_named", {"off": OneWeightOff(["c2"]), "right": Scaled()}.__getitem__)
    return folder


def test_a_rewrite_that_is_refused_is_reproduced(faulty: Path, capsys: Captured) -> None:
    arguments = ["rewrite", "chain.onnx", "-o", "made.onnx", "--pass", "off", "--repro", "again"]
    assert main([*arguments, "--certificate", "c.json"]) == 1
    said = capsys.readouterr().out
    assert "to see it again: again." in said
    assert "\nNo certificate is written: there is one only of a model that passed its audit.\n" in said
    assert not Path("made.onnx").exists()
    assert not Path("c.json").exists()
    assert {path.name for path in Path("again").iterdir()} == {"before.onnx", "after.onnx", "inputs.npz", "README.md"}
    assert len(onnx.load("again/before.onnx").graph.node) < 4
    assert main(["audit", "again/before.onnx", "again/after.onnx", "--inputs", "again/inputs.npz"]) == 1
    capsys.readouterr()
    assert main(arguments) == 2
    assert (
        capsys.readouterr().err
        == "Error: The folder 'again' is not empty: name a new one, nothing in it is overwritten.\n"
    )
    assert main(["rewrite", "chain.onnx", "-o", "made.onnx", "--pass", "right", "--repro", "none"]) == 0
    said = capsys.readouterr().out
    assert "There is nothing to reproduce: no rewrite was refused." in said
    assert "certificate is written" not in said  # and none was asked for
    assert main([*arguments[:-2], "-q", "--certificate", "c.json"]) == 1
    assert "certificate is written" not in capsys.readouterr().out
    assert not Path("none").exists()
    refused = rewriter.rewrite("chain.onnx", ["off"])
    assert refused.reproduce("from-python").folder == Path("from-python")


def test_two_models_that_differ_are_reproduced(folder: Path, capsys: Captured) -> None:
    assert main(["audit", "net.onnx", "wrong.onnx", "--fast", "--repro", "again", "--report", "r.md"]) == 1
    assert "to see it again: again." in capsys.readouterr().out
    assert main(["audit", "again/before.onnx", "again/after.onnx", "--inputs", "again/inputs.npz", "-q"]) == 1
    assert main([*AUDIT, "--repro", "none"]) == 0
    assert not Path("none").exists()
    found = rewriter.audit("net.onnx", "wrong.onnx")
    assert rewriter.reproduce(found, "net.onnx", "wrong.onnx", "from-python").folder == Path("from-python")


def test_an_audit_on_two_providers_is_certified_and_replayed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    fake_cuda(monkeypatch)
    both = ["audit", "net.onnx", "--fast", "--provider", "cpu", "--provider", "cuda"]
    np.savez("x.npz", input=sample(0))
    assert main([*both, "--inputs", "x.npz", "--val-range", "0,1", "--rtol", "1e-3", "--certificate", "c.json"]) == 0
    said = capsys.readouterr().out
    assert "every input from 0 to 1" in said
    assert "within" in said
    assert main(["audit", "net.onnx", "--replay", "c.json", "--inputs", "x.npz", "--report", "r.json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("REPRODUCED | equivalent")
    assert report()["providers"] == ["cpu", "cuda"]
    assert main([*both, "--repro", "again"]) == 2
    assert main(["audit", "net.onnx", "out.onnx", "--replay", "c.json", "--inputs", "x.npz", "-q"]) == 3
