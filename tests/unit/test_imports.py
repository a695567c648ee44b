from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import psycopg_pool
import pytest

import pytest_pgleak

PACKAGE = Path(pytest_pgleak.__file__).parent
ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
SOURCES = sorted(PACKAGE.rglob("*.py"))
INTERNALS = "psycopg_internals"
HEAVY = {
    *("psycopg", "psycopg_pool", "httpx", "httpx2", "fastapi", "starlette", "anyio", "asyncio"),
    *("sqlalchemy", "asyncpg", "psycopg2"),
}
FORBIDDEN_IN_CORE = HEAVY | {"pytest", "_pytest", "pluggy"}


def name_of(source):
    return source.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


def is_internals(source):
    return name_of(source).partition(".")[0] == INTERNALS


def is_of_another_library(source):
    """A module of `libraries` touches the insides of its own library, whose names may be the same."""
    return name_of(source).partition(".")[0] == "libraries"


def tree_of(source):
    return ast.parse(source.read_text(encoding="utf-8"), str(source))


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def at_runtime(tree):
    """All nodes but those that only a type checker reads."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        children = node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)
        todo.extend(children)


def imported(tree):
    """The full names of the modules that are imported, wherever in the file."""
    for node in at_runtime(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            if (PACKAGE.parent / (node.module or "").replace(".", "/")).is_dir():  # modules of one of our packages
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def core():
    """The modules that docs/architecture.md calls the pure core."""
    if not ARCHITECTURE.exists():
        pytest.skip("docs/architecture.md is not written yet")
    block = re.search(
        r"^```pure-core\s*\n(.*?)^```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    if block is None:
        pytest.skip("docs/architecture.md has no ```pure-core block")
    return {name.replace("/", ".") for name in block[1].split()}


def test_the_pure_core_exists():
    names = core()
    assert {"find", "findings", "views", "rendering", "sentences", "sql"} <= names
    assert names <= {name_of(source) for source in SOURCES}


def test_the_pure_core_imports_nothing_but_itself_and_the_standard_library():
    names = core()
    wrong = []
    for name in sorted(names):
        for module in imported(tree_of(PACKAGE / f"{name.replace('.', '/')}.py")):
            package, _, rest = module.partition(".")
            if package == "pytest_pgleak":
                if rest not in names:
                    wrong.append(f"{name} imports {module}")
            elif package in FORBIDDEN_IN_CORE or package not in sys.stdlib_module_names:
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def private_names():
    """What psycopg and psycopg_pool call private: attributes, methods and modules with one underscore."""
    names = set()
    for package in (psycopg, psycopg_pool):
        for source in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute):
                    names.add(node.attr)
                elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    names.add(node.name)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_uses(tree):
    """Private names of others: not of `self`, not of the module's own classes."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} | {"self", "cls", "os", "sys"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in own):
                yield node.attr, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            yield from (
                (argument.value, node.lineno)
                for argument in node.args[1:2]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )


def test_the_private_names_are_known():
    assert {"_pool", "_connect", "_get_tx_start_command"} <= private_names()
    used = {name for source in SOURCES if is_internals(source) for name, _ in private_uses(tree_of(source))}
    assert {"_pool"} <= used


def test_only_one_room_touches_the_internals_of_psycopg():
    private = private_names()
    wrong = []
    for source in SOURCES:
        if is_internals(source):
            continue
        tree = tree_of(source)
        if not is_of_another_library(source):
            wrong += [f"{source.name}:{lineno} {name}" for name, lineno in private_uses(tree) if name in private]
        wrong += [
            f"{source.name} imports {module}"
            for module in imported(tree)
            if re.match(r"psycopg(_pool)?\b.*\._", module)
        ]
    assert wrong == []


def test_only_that_room_patches_psycopg():
    patching = {
        INTERNALS if is_internals(source) else name_of(source)
        for source in SOURCES
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Patch", "Patches")
    }
    drivers = ("asyncpg", "asyncpg_pools", "psycopg2", "psycopg2_classes", "psycopg2_pools")
    sqlalchemy = ("sqlalchemy", "sqlalchemy_asyncio", "sqlalchemy_sessions")
    others = {f"libraries.{name}" for name in (*drivers, *sqlalchemy)}
    assert patching == {INTERNALS, "asgi"} | others
    for name in others:
        assert not re.search(
            r"^\s*(?:import|from) psycopg\b",
            (PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    assert not re.search(
        r"^\s*(?:import|from) psycopg", (PACKAGE / "asgi.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assigning = [
        f"{source.name}:{node.lineno}"
        for source in SOURCES
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if re.match(r"psycopg(_pool)?\.\w+", ast.unparse(target))
    ]
    assert assigning == []


def run(*args, cwd, **env):
    # Without the plugins of others: what is imported is then this one's doing.
    done = subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LIGHT = {"plugin", "options", "post_import", "fixtures", "libraries", "libraries.registry", "session_end"}


def heavy_among(modules):
    outside = {module for module in modules if module.partition(".")[0] in HEAVY}
    inside = {
        module for module in modules if module.startswith("pytest_pgleak.") and module.partition(".")[2] not in LIGHT
    }
    return sorted(outside | inside)


def test_importing_the_plugin_imports_nothing_heavy(tmp_path):
    script = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport pytest_pgleak.plugin\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    modules = run("-c", script, cwd=tmp_path).split()
    assert "pytest_pgleak.plugin" in modules
    assert heavy_among(modules) == []


def test_a_run_that_never_imports_psycopg_pays_nothing(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys, pytest\n"
        "@pytest.fixture\n"
        "def value(): yield 1\n"
        "def test_it(value): pass\n"
        "def test_last():\n"
        "    (__import__('pathlib').Path(__file__).parent / 'modules.txt').write_text('\\n'.join(sys.modules))\n"
    )
    without = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "2 passed" in without
    before = set((tmp_path / "modules.txt").read_text().split())
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_pgleak.plugin", cwd=tmp_path)
    modules = set((tmp_path / "modules.txt").read_text().split()) - before
    assert "pytest_pgleak.plugin" in modules
    # hookspecs: pytest has to know the hooks before a conftest.py implements them.
    assert heavy_among(modules - {"pytest_pgleak.hookspecs"}) == []
