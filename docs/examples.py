"""Keep the examples of the documentation real: run them, and paste what came out.

``python docs/examples.py`` rewrites README.md and the pages below docs/; ``--check`` only compares, and exits with 1
and a diff where a page is stale. It needs a PostgreSQL server as the tests do: PGLEAK_DSN, or whatever pgleak finds.

Eight comments in a page are instructions to this script (``…`` is what it replaces):

- ``<!-- file: test_a.py -->`` and a fenced block: a file. The files of a page are run together, by one pytest.
- ``<!-- command -->`` and a fenced block: the command that runs them, where it is not ``pytest`` alone.
- ``<!-- output: NAME PART -->`` … ``<!-- /output -->``: a file that this run has written. PART may be missing; in JSON
  it is a path of keys and indexes with dots between them, in XML the name of an element.
- ``<!-- example: NAME -->`` … ``<!-- /example -->``: the failure of the test NAME, from the page's own files, else from
  the leaky half of demo_app. ``summary`` is pgleak's summary of the page's own run, ``annotations`` what it tells
  GitHub; ``NAME:error`` are the lines of the error alone, ``NAME:waits`` what the terminal was told while NAME waited
  for a lock.
- ``<!-- run: ARGUMENTS -->`` … ``<!-- /run -->``: pgleak's summary of one more pytest, with these arguments, on the
  files that the page has shown by then. A page with such runs is played from top to bottom, in one directory.
- ``<!-- pgbouncer: MODE -->``: the files of the page are run with a PgBouncer in this pool mode. ``DATABASE_URL`` leads
  through it, to a database that has a table ``visits``; pgleak is told of its console, and of PostgreSQL.
- ``<!-- needs: NAME … -->``: modules without which the page is left as it is.
- ``<!-- code: PATH NAME … -->`` … ``<!-- /code -->``: these functions of a file of the repository.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import threading
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
DEMO: Final = "demo_app/tests/test_leaky.py"
PATIENCE: Final = 180.0
"""Seconds for one run of pytest; the slowest takes about ten."""

_FILE: Final = re.compile(r"<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND: Final = re.compile(r"<!-- command -->\n```sh\n(?P<command>[^\n]*)\n```$", re.MULTILINE)
_OUTPUT: Final = re.compile(r"(<!-- output: (?P<name>\S+)(?: (?P<part>\S+))? -->\n).*?(<!-- /output -->)", re.DOTALL)
_EXAMPLE: Final = re.compile(r"(<!-- example: (?P<name>\S+) -->\n).*?(<!-- /example -->)", re.DOTALL)
_RUN: Final = re.compile(r"(<!-- run:(?P<arguments>[^\n]*) -->\n).*?(<!-- /run -->)", re.DOTALL)
_CODE: Final = re.compile(r"(<!-- code: (?P<path>\S+) (?P<names>[^\n]+) -->\n).*?(<!-- /code -->)", re.DOTALL)

_OF_THE_RUN: Final = ("summary", "annotations")
_NEEDS: Final = re.compile(r"<!-- needs: (?P<names>[^\n]+) -->")
_PGBOUNCER: Final = re.compile(r"<!-- pgbouncer: (?P<mode>\w+) -->")
_RULER: Final = re.compile(r"(?P<fill>[_=]{2,}) (?P<title>.+?) (?P=fill)_?=?|={3,}|-{3,} .* -{3,}")
_WAITS: Final = re.compile(r"pgleak: \S+::(?P<name>\S+) \(\w+\) has been waiting for a lock for \S+ s")
_PHASE: Final = re.compile(r"ERROR at (setup|teardown) of ")

_CHANGING: Final = (
    (re.compile(r"\bpid \d+"), "pid 4711"),
    (re.compile(r"^ {12}pid 4711(?=, database)", re.MULTILINE), " " * 12 + "pid 4712"),  # the one that waits
    (re.compile(r"\bxid \d+"), "xid 739"),
    (re.compile(r"\bpg_terminate_backend\(\d+\)"), "pg_terminate_backend(4711)"),
    (re.compile(r"\b\d+\.\d s ago\b"), "0.5 s ago"),
    (re.compile(r"\bfor \d+\.\d s\b"), "for 0.5 s"),
    # When the garbage collector came depends on the machine: it is said from 0.1 s on.
    (re.compile(r" for 0\.5 s(?=[^\n]*\n(?:  last sql[^\n]*\n)?  ended     garbage-collected)"), ""),
    (re.compile(r"\bprepared \d+\.\d s ago\b"), "prepared 0.5 s ago"),
    (re.compile(r"'pool-\d+'"), "'pool-1'"),
    (re.compile(r"\b\d+ connections? in it"), "1 connection in it"),  # its workers may still be opening others
    (re.compile(r"\bpgleak_main_[0-9a-f]+"), "pgleak_main_1f2e3d4c"),
    (re.compile(r"\bfrom port \d+"), "from a Unix socket"),
    (re.compile(r"\bclient 127\.0\.0\.1:\d+"), "client 127.0.0.1:51234"),
    (re.compile(r"\basyncio-portal-[0-9a-f]+"), "asyncio-portal-1"),
)
"""What differs from run to run, and from server to server."""


class ExampleError(Exception):
    """A page asks for something that is not there."""


def normalised(text: str) -> str:
    """Put fixed values where a run has its own."""
    for pattern, fixed in _CHANGING:
        text = pattern.sub(fixed, text)
    return text


def run_pytest(arguments: tuple[str, ...], directory: Path, **variables: str) -> str:
    """Run pytest in a process of its own and return what it printed.

    Args:
        arguments: Its arguments.
        directory: The directory to run it in.
        variables: Environment variables.

    Raises:
        ExampleError: It does not end.
    """
    unwanted = ("PYTEST_", "GITHUB_", "CI", "BUILD_NUMBER")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    environment |= {"COLUMNS": "120", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    environment |= variables
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    try:
        process = subprocess.run(  # noqa: S603 - the arguments are this file's own
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ExampleError(f"pytest did not end within {PATIENCE:.0f} s: {' '.join(command)}") from None
    return process.stdout


def sections(output: str) -> dict[str, str]:
    """Cut pytest's output into sections.

    Args:
        output: All that pytest printed.

    Returns:
        The text of each failure by the name of its test, and pgleak's summary, its title included, as ``summary``.
    """
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in output.splitlines():
        if (ruler := _RULER.fullmatch(line)) is None:
            current.append(line)
            continue
        title = ruler["title"] or ""
        current = [title] if title.startswith("pgleak:") else []
        name = "summary" if current else _PHASE.sub("", title)
        # A test may have two: its own failure, and an error at teardown. They stand in one example, in pytest's order.
        if name in found and name != "summary":
            current = found[name]
            current.append("")
        found[name] = current
    found["annotations"] = [line for line in output.splitlines() if line.startswith("::")]
    found["summary"] = [line for line in found.get("summary", []) if not line.startswith("::")]
    found |= _errors(found) | _waits(output.splitlines())
    return {name: normalised("\n".join(lines).strip("\n")) for name, lines in found.items()}


def _errors(found: dict[str, list[str]]) -> dict[str, list[str]]:
    errors = {f"{name}:error": [line[1:] for line in lines if line.startswith("E   ")] for name, lines in found.items()}
    return {name: textwrap.dedent("\n".join(lines)).splitlines() for name, lines in errors.items()}


def _waits(lines: list[str]) -> dict[str, list[str]]:
    waits: dict[str, list[str]] = {}
    for number, line in enumerate(lines):
        if match := _WAITS.fullmatch(line):
            rest = itertools.takewhile(lambda following: following.startswith("  "), lines[number + 1 :])
            waits.setdefault(f"{match['name']}:waits", [line, *rest])
    return waits


def demo() -> dict[str, str]:
    """Run, once, those tests of the demo's leaky half that some page shows."""
    with _ONE_DEMO:
        return _demo()


_ONE_DEMO: Final = threading.Lock()
"""Pages are made at the same time, and more than one wants it."""


@functools.cache
def _demo() -> dict[str, str]:
    shown = {match["name"] for page in pages() for match in _EXAMPLE.finditer(page.read_text(encoding="utf-8"))}
    tests = sorted(f"{DEMO}::{name}" for name in shown if "[" in name)
    return sections(run_pytest(("-c", "demo_app/pytest.ini", "--rootdir=.", *tests), ROOT))


def own_run(page: str) -> dict[str, str]:
    """Run the files that a page shows; nothing where it shows none."""
    files = {match["name"]: match["text"] for match in _FILE.finditer(page)}
    if _RUN.search(page) or not any(name.startswith("test_") for name in files):
        return {}
    # An ini file of its own, even an empty one, so that no configuration above the temporary directory is found.
    files.setdefault("pytest.ini", "[pytest]\n")
    with tempfile.TemporaryDirectory(prefix="pgleak-docs-") as directory:
        for name, text in files.items():
            (Path(directory) / name).write_text(text, encoding="utf-8")
        with pgbouncer_of(page) as (of_pgbouncer, console):
            variables, arguments = (of_pgbouncer, console) if console else command_of(page)
            found = sections(run_pytest(arguments, Path(directory), **variables))
        for name in {match["name"] for match in _OUTPUT.finditer(page)}:
            if (written := Path(directory) / name).is_file():
                found[f"output: {name}"] = normalised(written.read_text(encoding="utf-8"))
        return found


@contextlib.contextmanager
def pgbouncer_of(page: str) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """Run the PgBouncer that a page asks for, if it does, with a server behind it.

    Yields:
        Environment variables, and arguments of pytest.
    """
    if (match := _PGBOUNCER.search(page)) is None:
        yield {}, ()
        return
    import psycopg
    from psycopg.conninfo import make_conninfo

    from pytest_pgleak.servers import ServerRequest, plan, start

    server = start(plan(ServerRequest(dsn=os.environ.get("PGLEAK_DSN"))))
    name = f"app_{uuid.uuid4().hex[:8]}"
    try:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute(f"create database {name}")
            straight = make_conninfo(server.dsn, dbname=name)
            try:
                with psycopg.connect(straight) as conn:
                    conn.execute("create table visits (name text)")
                with _pgbouncers().pgbouncer(straight, match["mode"]) as address:
                    through = make_conninfo(address, dbname=name)
                    console = make_conninfo(address, user="admin", dbname="pgbouncer")
                    yield {"DATABASE_URL": through, "PGLEAK_DSN": straight}, (f"--pgleak-pgbouncer={console}",)
            finally:
                admin.execute(f"drop database {name} with (force)")
    finally:
        server.stop()


def _pgbouncers() -> Any:
    if (tests := str(ROOT / "tests")) not in sys.path:
        sys.path.append(tests)
    return importlib.import_module("pgbouncers")


def command_of(page: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the environment variables and the arguments of the command that a page shows; none where it shows none.

    Raises:
        ExampleError: It is not pytest that is run.
    """
    if (match := _COMMAND.search(page)) is None:
        return {}, ()
    words = shlex.split(match["command"])
    variables = list(itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    if words[len(variables)] != "pytest":
        raise ExampleError(f"not a command that runs pytest: {match['command']}")
    pairs = (variable.partition("=") for variable in variables)
    return {name: value for name, _, value in pairs}, tuple(words[len(variables) + 1 :])


def output_block(name: str, text: str, part: str | None) -> str:
    """Return a file that a run has written, or a part of it, as a fenced block.

    Args:
        name: The name of the file.
        text: What is in it.
        part: Which part of it to show.
    """
    language = {".json": "json", ".sarif": "json", ".xml": "xml"}[Path(name).suffix]
    if language == "xml":
        element = ET.fromstring(text) if part is None else ET.fromstring(text).find(f".//{part}")  # noqa: S314 - ours
        if element is None:
            raise ExampleError(f"{name} has no element {part}")
        ET.indent(element)
        element.tail = None
        text = ET.tostring(element, encoding="unicode")
    elif part is not None:
        found = json.loads(text)
        for step in part.split("."):
            found = found[int(step) if step.isdigit() else step]
        text = json.dumps(found, indent=2, ensure_ascii=False)
    return f"```{language}\n{text.rstrip()}\n```\n"


def played(page: str) -> str:
    """Play a page from top to bottom: write the files that it shows, run what it runs, paste what came out.

    Raises:
        ExampleError: A run has said nothing.
    """
    files = list(_FILE.finditer(page))
    with tempfile.TemporaryDirectory(prefix="pgleak-docs-") as directory:

        def paste_run(match: re.Match[str]) -> str:
            while files and files[0].start() < match.start():
                shown = files.pop(0)
                (Path(directory) / shown["name"]).write_text(shown["text"], encoding="utf-8")
            found = sections(run_pytest(tuple(shlex.split(match["arguments"])), Path(directory)))
            if not (text := found.get("summary") or found.get("pgleak")):
                raise ExampleError(f"pgleak has said nothing at the end of pytest {match['arguments']}")
            return f"{match[1]}```text\n{text}\n```\n{match[3]}"

        return _RUN.sub(paste_run, page)


def function_sources(path: str, names: list[str]) -> str:
    """Return the source of top-level functions, decorators included.

    Args:
        path: A Python file, relative to the repository.
        names: The functions, in the order to show them in.

    Raises:
        ExampleError: There is no such function.
    """
    source = (ROOT / path).read_text(encoding="utf-8")
    lines = source.splitlines()
    found = {
        node.name: "\n".join(lines[min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno])
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    if missing := [name for name in names if name not in found]:
        raise ExampleError(f"{path} has no function {', '.join(missing)}")
    return "\n\n\n".join(found[name] for name in names)


def missing(page: str) -> list[str]:
    """Return what a page needs and what is not installed: modules, PgBouncer."""
    named = _NEEDS.search(page)
    lacking = [name for name in named["names"].split() if importlib.util.find_spec(name) is None] if named else []
    if _PGBOUNCER.search(page) and _pgbouncers().PROGRAM is None:
        lacking.append("pgbouncer")
    return lacking


def refreshed(page: str) -> str:
    """Return a page with all that is pasted into it made anew.

    Raises:
        ExampleError: It asks for a test that did not fail, or for code that is not there.
    """
    own = own_run(page)

    def paste_example(match: re.Match[str]) -> str:
        name = match["name"]
        text = own.get(name) or ("" if name in _OF_THE_RUN else demo().get(name))
        if not text:
            raise ExampleError(f"no test {name} failed; the page's own run has {sorted(own)}")
        return f"{match[1]}```text\n{text}\n```\n{match[3]}"

    def paste_output(match: re.Match[str]) -> str:
        if (text := own.get(f"output: {match['name']}")) is None:
            raise ExampleError(f"the page's own run has written no {match['name']}")
        return f"{match[1]}{output_block(match['name'], text, match['part'])}{match[4]}"

    def paste_code(match: re.Match[str]) -> str:
        code = function_sources(match["path"], match["names"].split())
        return f"{match[1]}```python\n{code}\n```\n{match[4]}"

    return played(_CODE.sub(paste_code, _OUTPUT.sub(paste_output, _EXAMPLE.sub(paste_example, page))))


def pages() -> list[Path]:
    """Return the pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def all_made(paths: list[Path]) -> Iterator[tuple[Path, str, Future[str]]]:
    """Make pages anew, some at the same time.

    Args:
        paths: The pages.

    Yields:
        In the same order, each with its text, and what becomes of it where nothing that it needs is missing.
    """
    # One more than can run: the processes wait for servers and for locks, too.
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as threads:
        texts = [path.read_text(encoding="utf-8") for path in paths]
        made = [threads.submit(lambda page=text: page if missing(page) else refreshed(page)) for text in texts]
        yield from zip(paths, texts, made, strict=True)


def main() -> int:
    """Rewrite the pages, or with ``--check`` compare them. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Paste real output into the documentation.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a page is stale")
    parser.add_argument("pages", nargs="*", type=Path, help="only these, and each has to be run")
    arguments = parser.parse_args()
    check: bool = arguments.check
    named = [page.resolve() for page in arguments.pages]
    status = 0
    for path, before, made in all_made(named or pages()):
        name = path.relative_to(ROOT).as_posix()
        if lacking := missing(before):
            print(f"{name}: left as it is, for {' and '.join(lacking)} cannot be found", file=sys.stderr)
            status = status or int(bool(named))
            continue
        try:
            after = made.result()
        except ExampleError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
            continue
        if after == before:
            continue
        if check:
            status = 1
            diff = difflib.unified_diff(before.splitlines(), after.splitlines(), name, f"{name}, as it is", lineterm="")
            print("\n".join(diff))
        else:
            path.write_text(after, encoding="utf-8")
            print(f"{name}: rewritten")
    if status and check:
        print("\nRefresh the examples with: python docs/examples.py", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
