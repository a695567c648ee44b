"""The command that starts a server: from what the user has written to what is executed. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pytest_pgleak.rendering import without_passwords

HOST: Final = "127.0.0.1"
DEFAULT: Final = "uvicorn {app} --workers {workers}"
"""What ``pgleak_live_command`` is where nobody has set it."""

_ASSIGNMENT: Final = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_PLACEHOLDER: Final = re.compile(r"\{([a-z]+)\}")
_LOOPBACK: Final = (HOST, "localhost")
_EVERYWHERE: Final = re.compile(r"(?<![\d.])0\.0\.0\.0(?![\d.])|\[::\]")
_PYTHONS: Final = ("python", "python3")
_OPTION: Final = "pgleak_live_command"


class LiveServerError(Exception):
    """The server cannot be started, or does not answer; the message says why and what to do, without a password."""


class PortTakenError(LiveServerError):
    """Somebody has taken the port since it was found to be free."""


@dataclass(frozen=True, slots=True)
class Command:
    """What is executed.

    Attributes:
        arguments: The program and its arguments.
        environment: What it has beside pytest's own environment. There may be a password in it.
        workers: How many processes serve, as far as the command says so.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    workers: int = 1


def read_command(text: str, values: Mapping[str, str], python: str, *, has_control_socket: bool = False) -> Command:
    """Read a command.

    Args:
        text: As in a shell: ``NAME=VALUE`` before the program, and quotes. There is no shell, so nothing else.
        values: What stands for ``{app}``, ``{workers}``, ``{port}``, ``{host}``, ``{dsn}``. A missing one cannot be
            asked for.
        python: The interpreter that runs uvicorn and gunicorn.
        has_control_socket: Whether the gunicorn there would make a control socket by itself.

    Raises:
        LiveServerError: It cannot be meant.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise LiveServerError(f"{_OPTION} = {text}: {error}") from None
    environment: dict[str, str] = {}
    while words and (assignment := _ASSIGNMENT.fullmatch(words[0])) is not None:
        environment[assignment[1]] = _filled(assignment[2], values)
        words.pop(0)
    if not words:
        raise LiveServerError(f"{_OPTION} = {text}: there is no program in it, as in `{DEFAULT}`")
    if any("{dsn}" in word for word in words):
        raise LiveServerError(
            f"{_OPTION}: everybody can read the arguments of a process, and {{dsn}} may have a password in it; put it"
            " into the environment: `DATABASE_URL={dsn} uvicorn …`"
        )
    asks_for_port = "{port}" in text
    words = [_filled(word, values) for word in words]
    before, words = _interpreter(words, python)
    program = words[0].rpartition("/")[2]
    if program == "uvicorn":
        words = [*(before or [python, "-m"]), *_uvicorn(words, values["port"])]
    elif program == "gunicorn":
        words = [*(before or [python, "-m"]), *_gunicorn(words, values["port"], has_control_socket)]
    elif not asks_for_port:
        raise LiveServerError(
            f"{_OPTION} = {text}: it must say where to listen: `{{port}}` stands for a free port of {HOST}; {program}"
            " is neither uvicorn nor gunicorn, which get it by themselves"
        )
    else:
        words = [*before, *words]
        for word in words:
            if (everywhere := _EVERYWHERE.search(word)) is not None:
                raise _reachable(everywhere[0])
    return Command(tuple(words), environment, _workers(words, environment))


def check_is_used(text: str, app: str | None, workers: int | None) -> None:
    """Check that a command has a place for what ``pgleak_live`` was given.

    Args:
        text: The command.
        app: The application; None where none was named.
        workers: How many processes; None where nobody has said that.

    Raises:
        LiveServerError: It would do something else.
    """
    missing = []
    if app is not None and "{app}" not in text and app not in text:
        missing.append((f'"{app}"', "{app}"))
    says_workers = "{workers}" in text or "WEB_CONCURRENCY" in text
    if workers is not None and not says_workers and workers != _workers(text.split(), {}):
        missing.append((f"workers={workers}", "{workers}"))
    if missing:
        given = ", ".join(each for each, _ in missing)
        places = " and ".join(place for _, place in missing)
        raise LiveServerError(
            f"pgleak_live({given}): the command has no place for that, `{without_passwords(text)}`. Put {places} into"
            " it, or give pgleak_live another command"
        )


def _filled(word: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] in values:
            return values[match[1]]
        if match[1] == "app":
            raise LiveServerError(
                f'{_OPTION} has {{app}} in it: name your application, as pgleak_live("app.main:app"), or write it'
                " into the command: `uvicorn app.main:app`"
            )
        known = ", ".join(f"{{{name}}}" for name in ("app", "workers", "host", "port", "dsn"))
        raise LiveServerError(f"{_OPTION}: nothing stands for {match[0]}; there are {known}")

    return _PLACEHOLDER.sub(value, word)


def _interpreter(words: list[str], python: str) -> tuple[list[str], list[str]]:
    """Take the Python, up to its ``-m``, from before a module that it runs."""
    if words[0].rpartition("/")[2] not in _PYTHONS:
        return [], words
    words = [python, *words[1:]]
    start = words.index("-m") + 1 if "-m" in words[:-1] else 0
    return words[:start], words[start:]


def _uvicorn(words: Sequence[str], port: str) -> list[str]:
    words = ["uvicorn", *words[1:]]
    for elsewhere in ("--uds", "--fd"):
        if _option(words, elsewhere) is not None:
            raise LiveServerError(f"{_OPTION}: leave {elsewhere} out: the clients ask at a port of {HOST}")
    hosts, ports = _options(words, "--host"), _options(words, "--port")
    for host in hosts:
        _check_loopback(host)
    for given in ports:
        _check_port(given, port)
    return [*words, *(() if hosts else ("--host", HOST)), *(() if ports else ("--port", port))]


def _gunicorn(words: Sequence[str], port: str, has_control_socket: bool) -> list[str]:
    words = ["gunicorn", *words[1:]]
    binds = _options(words, "--bind", "-b")
    for bind in binds:
        if bind.startswith(("unix:", "fd://")):
            raise LiveServerError(f"{_OPTION}: leave {bind} out: the clients ask at a port of {HOST}")
        host, _, given = bind.rpartition(":")
        _check_loopback(host if host or bind.startswith(":") else bind)
        _check_port(given, port)
    if not binds:
        words += ["--bind", f"{HOST}:{port}"]
    if has_control_socket and _option(words, "--control-socket") is None and "--no-control-socket" not in words:
        # It would be in $XDG_RUNTIME_DIR or in ~/.gunicorn, where that of another gunicorn may be: it is deleted.
        words += ["--no-control-socket"]
    return (
        words if _option(words, "--worker-class", "-k") is not None else [*words, "-k", "uvicorn_worker.UvicornWorker"]
    )


def _check_loopback(host: str) -> None:
    if host.startswith(("127.0.0.", "::1", "[::1]")) and host != HOST:
        raise LiveServerError(f"{_OPTION}: the clients ask at {HOST}, not at {host}; leave the address out")
    if host not in _LOOPBACK:
        raise _reachable(host)


def _reachable(host: str) -> LiveServerError:
    return LiveServerError(
        f"{_OPTION}: {host or 'every address'} can be reached from other machines; leave the address out, or say"
        f" {HOST} and {{port}}"
    )


def _check_port(given: str, port: str) -> None:
    if given != port:
        raise LiveServerError(
            f"{_OPTION}: nobody knows whether port {given} is free; leave it out, or say {{port}}, which is"
        )


def _options(words: Sequence[str], *names: str) -> list[str]:
    """Return the values of an option, written as two words or as one, as often as it is given."""
    found = []
    for place, word in enumerate(words):
        for name in names:
            if word == name:
                found.append(words[place + 1] if place + 1 < len(words) else "")
            elif name.startswith("--") and word.startswith(f"{name}="):
                found.append(word.partition("=")[2])
            elif not name.startswith("--") and word.startswith(name) and not word.startswith("--"):
                found.append(word.removeprefix(name).removeprefix("="))
    return found


def _option(words: Sequence[str], *names: str) -> str | None:
    """Return the last value of an option, the one that counts."""
    return next(reversed(_options(words, *names)), None)


def _workers(words: Sequence[str], environment: Mapping[str, str]) -> int:
    given = _option(words, "--workers", "-w") or environment.get("WEB_CONCURRENCY", "")
    return max(int(given), 1) if given.isdigit() else 1
