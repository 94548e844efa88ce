"""Saving: whole or not at all, never over the source, with the data files beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from graphs import DATA_FILE, exotic_model, grouped_conv, node, save_with_data, weights, write_exotic_data
from rewriter import external, saving
from rewriter.errors import BadInput
from rewriter.model import Edit, Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.saving import check_target, save, write_atomically

MORE = Edit(inserted={0: (node("Relu", ["x"], ["more"]),)})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder `in` with the model m.onnx, which keeps its weights in m.data."""
    (tmp_path / "in").mkdir()
    return save_with_data(grouped_conv(), tmp_path / "in", size_threshold=0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.onnx"


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder: files with their content, folders and special files with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextmanager
def refused(model: Model, out: Path, words: str) -> Iterator[None]:
    """Both the check beforehand and saving itself refuse, with a sentence, and change nothing."""
    before = files(out.parent) if out.parent.is_dir() else None
    for refuse in (check_target, save):
        with pytest.raises(BadInput, match=words) as error:
            refuse(model, out)
        assert str(error.value).endswith(".")
    assert (files(out.parent) if out.parent.is_dir() else None) == before
    yield


# Where it goes.


def test_a_saved_model_is_the_model(tmp_path: Path) -> None:
    loaded = Model.load(grouped_conv())
    check_target(loaded, tmp_path / "new.onnx")
    save(loaded, tmp_path / "new.onnx")
    assert files(tmp_path) == {"new.onnx": loaded.to_bytes()}
    spliced = loaded.splice(MORE)
    save(spliced, tmp_path / "new.onnx")
    assert files(tmp_path) == {"new.onnx": spliced.to_bytes()}


def test_an_unchanged_copy_is_byte_identical(source: Path, out: Path) -> None:
    save(Model.load(source), out)
    assert files(out.parent) == files(source.parent)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "is a folder: give the name of a file"),
        ("missing/m.onnx", "the output folder '.*missing' does not exist: create it first"),
        ("file/m.onnx", "the output folder '.*file' does not exist"),
        ("pipe", "is a device or pipe: give the name of a file"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_places_that_take_no_file(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with refused(Model.load(grouped_conv()), tmp_path / name, words):
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere, so no mode refuses it
    with refused(Model.load(grouped_conv()), tmp_path / "m.onnx", "the output folder '.*' is not writable"):
        pass


# Never over its source.


@pytest.mark.parametrize("how", ["itself", "another spelling", "symbolic link", "hard link"])
@pytest.mark.parametrize("spliced", [False, True])
def test_the_input_is_never_overwritten(how: str, spliced: bool, source: Path, out: Path) -> None:
    before = source.read_bytes()
    match how:
        case "itself":
            target = source
        case "another spelling":
            target = source.parent / ".." / "in" / "m.onnx"
        case "symbolic link":
            target = out
            target.symlink_to(source)
        case _:
            target = out
            target.hardlink_to(source)
    loaded = Model.load(source)
    with refused(loaded.splice(MORE) if spliced else loaded, target, "is the input model itself"):
        assert source.read_bytes() == before


def test_a_model_loaded_through_a_link_does_not_overwrite_the_real_one(source: Path) -> None:
    link = source.parent / "link.onnx"
    link.symlink_to(source)
    with refused(Model.load(link).splice(MORE), source, "is the input model itself"):
        pass


@pytest.mark.parametrize("link", [False, True])
def test_the_data_file_is_never_overwritten(link: bool, source: Path, out: Path) -> None:
    target = source.parent / "m.data"
    if link:
        out.symlink_to(target)
        target = out
    with refused(Model.load(source), target, "holds the model's weights: choose another name"):
        pass


def test_the_data_file_of_weights_that_were_rewritten_is_not_overwritten_either(source: Path) -> None:
    after, applied, _ = sweep(Model.load(source), Step(pass_named("grouped-to-depthwise-sum")), {})
    assert applied
    assert external.locations(after.skeleton) == []
    with refused(after, source.parent / "m.data", "holds the model's weights"):
        pass


def test_out_may_not_take_the_name_of_the_data_beside_it(source: Path, out: Path) -> None:
    with refused(Model.load(source), out.parent / "m.data", "has the name of the model's external data"):
        pass


# Data files.


def test_data_files_are_copied_beside_a_model_elsewhere(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "exotic"
    folder.mkdir()
    write_exotic_data(folder)
    (folder / "m.onnx").write_bytes(exotic_model().SerializeToString())
    loaded = Model.load(folder / "m.onnx")
    save(loaded, out)
    assert files(out.parent) == files(folder)
    assert (out.parent / DATA_FILE).is_file()
    again = Model.load(out)
    assert external.read(external.Reference(DATA_FILE, 0, 8), again.folder, "w") == weights("", 2).raw_data


def test_in_the_same_folder_nothing_is_copied(source: Path) -> None:
    before = (source.parent / "m.data").stat()
    save(Model.load(source).splice(MORE), source.parent / "other.onnx")
    after = (source.parent / "m.data").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert set(files(source.parent)) == {"m.onnx", "m.data", "other.onnx"}


def test_the_same_folder_under_another_name_is_the_same(source: Path, tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(source.parent)
    save(Model.load(source), tmp_path / "again" / "other.onnx")
    assert set(files(source.parent)) == {"m.onnx", "m.data", "other.onnx"}


def test_weights_that_nothing_refers_to_any_more_are_not_copied(source: Path, out: Path) -> None:
    after, _, _ = sweep(Model.load(source), Step(pass_named("grouped-to-depthwise-sum")), {})
    save(after, out)
    assert set(files(out.parent)) == {"m.onnx"}


def test_the_same_content_may_be_there_already(source: Path, out: Path) -> None:
    there = out.parent / "m.data"
    there.write_bytes((source.parent / "m.data").read_bytes())
    inode = there.stat().st_ino
    save(Model.load(source), out)
    assert there.stat().st_ino == inode
    assert files(out.parent) == files(source.parent)


@pytest.mark.parametrize("same_size", [False, True])
def test_other_content_is_a_collision(same_size: bool, source: Path, out: Path) -> None:
    data = (source.parent / "m.data").read_bytes()
    (out.parent / "m.data").write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if same_size else b"other")
    with refused(Model.load(source), out, "exists with other content than the model's external data"):
        assert not out.exists()


def test_a_folder_in_the_datas_place_is_a_collision(source: Path, out: Path) -> None:
    (out.parent / "m.data").mkdir()
    with refused(Model.load(source), out, "exists with other content"):
        assert not out.exists()


def test_missing_data_is_told(source: Path, out: Path) -> None:
    loaded = Model.load(source)
    (source.parent / "m.data").unlink()
    with refused(loaded, out, "the external data file '.*m.data' does not exist"):
        assert not out.exists()
    save(loaded, source.parent / "other.onnx")  # no copy is needed here, and none is missed


@pytest.mark.parametrize("location", ["/etc/hostname", "../in/m.data"])
def test_locations_outside_are_refused(location: str, source: Path, out: Path) -> None:
    made = onnx.load(source, load_external_data=False)
    for tensor in made.graph.initializer:
        tensor.external_data[0].value = location
    source.write_bytes(made.SerializeToString())
    with refused(Model.load(source), out, "leaves the model's folder; refused for safety"):
        assert not out.exists()


def test_a_model_without_a_folder_cannot_leave_its_data_behind(source: Path, out: Path) -> None:
    with refused(Model.load(source.read_bytes()), out, "its folder is unknown: give the path"):
        assert not out.exists()


# Whole or not at all.


@pytest.fixture(params=["write", "fsync", "replace", "data fsync", "interrupt"])
def failure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Make saving fail at one place; gives the error that comes out."""
    fsync, replace = os.fsync, Path.replace
    calls = {"fsync": 0}

    def chunks(self: Model) -> Iterator[bytes]:
        yield b"the first half"
        if request.param == "interrupt":
            raise KeyboardInterrupt
        raise OSError(28, "No space left on device")

    def failing_fsync(handle: int) -> None:
        calls["fsync"] += 1
        if request.param == "data fsync" or calls["fsync"] == 2:
            raise OSError(5, "Input/output error")
        fsync(handle)

    def failing_replace(self: Path, target: Path) -> Path:
        if target.suffix == ".onnx":
            raise OSError(18, "Invalid cross-device link")
        return replace(self, target)

    match request.param:
        case "write" | "interrupt":
            monkeypatch.setattr(Model, "chunks", chunks)
        case "replace":
            monkeypatch.setattr(Path, "replace", failing_replace)
        case _:
            monkeypatch.setattr(os, "fsync", failing_fsync)
    return KeyboardInterrupt if request.param == "interrupt" else BadInput


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(
    failure: type[BaseException], existing: bool, tmp_path: Path, out: Path
) -> None:
    folder = tmp_path / "exotic"
    folder.mkdir()
    write_exotic_data(folder)
    (folder / "m.onnx").write_bytes(exotic_model().SerializeToString())
    if existing:
        out.write_bytes(b"what was there")
    before = files(out.parent)
    with pytest.raises(failure) as error:
        save(Model.load(folder / "m.onnx"), out)
    assert files(out.parent) == before
    if failure is BadInput:
        assert str(error.value).startswith(f"'{out}' cannot be written: ")


def test_a_folder_of_data_that_was_there_stays(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "exotic"
    folder.mkdir()
    write_exotic_data(folder)
    (folder / "m.onnx").write_bytes(exotic_model().SerializeToString())
    (out.parent / "weights").mkdir()
    (out.parent / "weights" / "another").write_bytes(b"kept")
    before = files(out.parent)

    def fail(self: Model) -> Iterator[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Model, "chunks", fail)
    with pytest.raises(BadInput, match="No space left on device"):
        save(Model.load(folder / "m.onnx"), out)
    assert files(out.parent) == before


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_the_umask_gives(mask: int, mode: int, source: Path, out: Path) -> None:
    old = os.umask(mask)
    try:
        save(Model.load(source), out)
        write_atomically(out.parent / "report.json", b"{}")
    finally:
        assert os.umask(old) == mask
    for name in ("m.onnx", "m.data", "report.json"):
        assert stat.S_IMODE((out.parent / name).stat().st_mode) == mode, name


def test_a_name_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    name = "m" * 250 + ".onnx"
    save(Model.load(grouped_conv()), tmp_path / name)
    assert list(files(tmp_path)) == [name]


# Reports.


def test_small_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert files(tmp_path) == {"report.json": b"two"}

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BadInput, match=r"cannot be written: No space left on device\.$"):
        write_atomically(path, b"three")
    assert files(tmp_path) == {"report.json": b"two"}


def test_reports_go_to_devices_and_through_links(tmp_path: Path) -> None:
    """A report to /dev/stdout must not put a file in the device's place."""
    write_atomically(Path(os.devnull), b"nothing")
    assert not Path(os.devnull).is_file()
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"content"


def test_saving_has_one_way_to_replace_a_file() -> None:
    assert Path(saving.__file__).read_text().count(".replace(") == 1
