"""Provider options that ONNX Runtime refuses: bad usage, said before any work, by every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from cli_runs import small_network
from fake_cuda import fake_cuda
from rewriter.cli import main

REWRITE = ("rewrite", "net.onnx", "--pass", "regroup")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a network."""
    (tmp_path / "net.onnx").write_bytes(small_network().SerializeToString())
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED = (
    ('provider_options_utils.h:182 Parse Unknown provider option: "use_tf23".', "use_tf23=0", "no option 'use_tf23'"),
    (
        'provider_options_utils.h:187 Parse Failed to parse provider option "use_tf32": parse_string.h:116 bad',
        "use_tf32=maybe",
        "does not take 'maybe' for the option use_tf32",
    ),
)


@pytest.mark.parametrize(("words", "option", "said"), REFUSED)
def test_options_that_onnx_runtime_refuses_are_bad_usage(
    words: str,
    option: str,
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusing(monkeypatch, f"/o/cuda_execution_provider_info.cc:63 static onnxruntime::Info Make(const O&) [x] {words}")
    audits = (("audit", "net.onnx", "net.onnx"), ("audit", "net.onnx", "--provider", "cpu"))
    for arguments in (REWRITE, ("optimize", "net.onnx"), ("bench", "net.onnx"), *audits):
        before = {path.name for path in folder.iterdir()}
        assert main([*arguments, "--provider", "cuda", "--provider-option", option]) == 2
        told = capsys.readouterr()
        assert (told.out, told.err.count("\n")) == ("", 1)
        assert said in told.err
        assert {path.name for path in folder.iterdir()} == before


def test_options_that_do_not_fit_the_machine_are_no_bad_usage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing(monkeypatch, "CUDA failure 2: out of memory ; GPU=0 ; hostname=h")
    assert main([*REWRITE, "--provider", "cuda", "--provider-option", "gpu_mem_limit=1"]) == 3
    assert "could not start its cuda provider with gpu_mem_limit=1: CUDA failure 2: out" in capsys.readouterr().err


def refusing(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Let a stand-in for CUDA raise these words where it is given options."""
    fake_cuda(monkeypatch)
    real = onnxruntime.InferenceSession

    def opened(*arguments: Any, provider_options: Any = ({},), **others: Any) -> Any:
        if provider_options[0]:
            raise RuntimeError(words)
        return real(*arguments, provider_options=provider_options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
