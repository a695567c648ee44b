from __future__ import annotations

import pytest

from pytest_pgleak.reports import html_report
from pytest_pgleak.reports.targets import Target, TargetError, read_targets


def read(tmp_path, *given):
    return read_targets(given, tmp_path)


def trouble(tmp_path, given):
    with pytest.raises(TargetError) as error:
        read(tmp_path, given)
    assert str(error.value).startswith(f"--pgleak-report={given}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_paths_begin_where_pytest_was_started(tmp_path):
    absolute = tmp_path / "elsewhere" / "b.sarif"
    assert read(tmp_path, "out/a.json", str(absolute)) == (
        Target("out/a.json", tmp_path / "out" / "a.json", ".json"),
        Target(str(absolute), absolute, ".sarif"),
    )
    assert not (tmp_path / "out").exists()


def test_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert read(tmp_path, "~/a.json")[0].path == tmp_path / "home" / "a.json"


def test_twice_is_once(tmp_path):
    assert len(read(tmp_path, "a.json", "a.json", "b.json")) == 2


def test_suffixes_in_capitals(tmp_path):
    assert read(tmp_path, "A.JSON")[0].suffix == ".json"


@pytest.mark.parametrize("given", ["leaks", "leaks.xml", "leaks.json.gz", ".json", ""])
def test_an_unknown_suffix(tmp_path, given):
    assert "expected a file that ends in .json, .sarif or .html" in trouble(tmp_path, given)


def test_html_without_jinja2(tmp_path, monkeypatch):
    monkeypatch.setattr(html_report, "is_possible", lambda: False)
    assert 'pip install "pytest-pgleak[html]"' in trouble(tmp_path, "a.html")


def test_a_directory(tmp_path):
    (tmp_path / "a.json").mkdir()
    assert "it is a directory; give the path of a file" in trouble(tmp_path, "a.json")


def test_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file is no directory" in trouble(tmp_path, "file/below/a.json")


def test_a_name_that_is_too_long(tmp_path):
    assert "it cannot be written: File name too long" in trouble(tmp_path, f"{'a' * 300}.json")
