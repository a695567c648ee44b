from __future__ import annotations

import pytest

from pytest_pgleak.baseline.extent import Extent
from pytest_pgleak.baseline.file import write
from pytest_pgleak.baseline.keys import Key
from pytest_pgleak.baseline.text import from_text

KNOWN = {Key("connection-dropped", "app/räpo.py", "get_conn"): ("tests/test_a.py::test_1",)}


def test_it_is_written_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "baseline.json"
    assert write(path, KNOWN, Extent())
    assert from_text(path.read_text(encoding="utf-8")) == (KNOWN, Extent())
    assert b"\r" not in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_the_same_is_not_touched(tmp_path):
    path = tmp_path / "baseline.json"
    write(path, KNOWN, Extent())
    before = path.stat()
    assert not write(path, KNOWN, Extent())
    after = path.stat()
    # Not all of it: to be read may change the time of the last access.
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert write(path, {}, Extent())


def test_the_permissions_and_a_symbolic_link_stay(tmp_path):
    path, link = tmp_path / "baseline.json", tmp_path / "link.json"
    write(path, {}, Extent())
    path.chmod(0o640)
    link.symlink_to(path)
    write(link, KNOWN, Extent())
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert from_text(path.read_text(encoding="utf-8"))[0] == KNOWN


def test_a_failure_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "baseline.json"
    write(path, KNOWN, Extent())

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, {}, Extent())
    assert from_text(path.read_text(encoding="utf-8"))[0] == KNOWN
    assert list(tmp_path.iterdir()) == [path]
