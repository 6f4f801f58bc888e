"""Folders that are complete or not there; files are tested by whatever writes some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxhash.storage.atomic import remove_partial_files, replacing, replacing_folder, write_bytes

HEX = "0123456789abcdef" * 2


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "page"
    for content in ("first", "second"):
        with replacing_folder(target) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / content).write_text(content)
            assert not (target / "below" / content).exists()
        assert [path.name for path in target.rglob("*")] == ["below", content]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "page"
    if exists:
        target.mkdir()
        (target / "before").touch()
    with pytest.raises(IsADirectoryError), replacing_folder(target) as temporary:
        (temporary / ".").write_text("a folder is no file")
    assert [path.name for path in tmp_path.rglob("*")] == (["page", "before"] if exists else [])


def test_a_folder_that_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one, which was out of the way for that moment, is back."""
    target, rename = tmp_path / "page", os.rename
    target.mkdir()
    (target / "before").touch()

    def failing(source: Path, place: Path) -> None:
        if (Path(source) / "after").exists():
            raise OSError("no space left")
        rename(source, place)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no space left"), replacing_folder(target) as temporary:
        (temporary / "after").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["page", "before"]


def test_what_killed_processes_leave_is_removed(tmp_path: Path) -> None:
    mine = {"other", ".notes.partial", ".file.0.partial"}
    for name in (*mine, f".file.{HEX}.partial"):
        (tmp_path / name).touch()
    (tmp_path / f".page.{HEX}.partial" / "below").mkdir(parents=True)
    remove_partial_files(tmp_path, "file")
    assert {path.name for path in tmp_path.iterdir()} == mine | {f".page.{HEX}.partial"}
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == mine


def test_a_killed_process_leaves_files_of_that_form(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as temporary:
        temporary.touch()
        remove_partial_files(tmp_path, "file")
        assert not temporary.exists()
        temporary.touch()


@pytest.mark.skipif(os.name == "nt", reason="permissions of Windows are others")
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    write_bytes(path, b"new")
    assert (path.stat().st_mode & 0o777, path.read_bytes()) == (0o600, b"new")
