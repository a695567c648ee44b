"""The command that starts a server: from what the user has written to what is executed. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

HOST: Final = "127.0.0.1"
DEFAULT: Final = "uvicorn {app} --workers {workers}"
"""What ``pgleak_live_command`` is where nobody has set it."""

_ASSIGNMENT: Final = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_PLACEHOLDER: Final = re.compile(r"\{([a-z]+)\}")
_LOOPBACK: Final = ("127.", "localhost", "[::1]", "::1")
_OPTION: Final = "pgleak_live_command"


class LiveServerError(Exception):
    """The server cannot be started, or does not answer; the message says why and what to do, without a password."""


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


def read_command(text: str, values: Mapping[str, str], python: str) -> Command:
    """Read a command.

    Args:
        text: As in a shell: ``NAME=VALUE`` before the program, and quotes. There is no shell, so nothing else.
        values: What stands for ``{app}``, ``{workers}``, ``{port}``, ``{host}``, ``{dsn}``. A missing one cannot be
            asked for.
        python: The interpreter that runs uvicorn and gunicorn.

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
    program = words[0].rpartition("/")[2]
    if program == "uvicorn":
        words = [python, "-m", *_uvicorn(words, values["port"])]
    elif program == "gunicorn":
        words = [python, "-m", *_gunicorn(words, values["port"])]
    elif not asks_for_port:
        raise LiveServerError(
            f"{_OPTION} = {text}: it must say where to listen: `{{port}}` stands for a free port of {HOST}"
        )
    elif program in ("python", "python3"):
        words[0] = python
    return Command(tuple(words), environment, _workers(words))


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


def _uvicorn(words: Sequence[str], port: str) -> list[str]:
    words = ["uvicorn", *words[1:]]
    host = _option(words, "--host")
    if host is None:
        words += ["--host", HOST]
    else:
        _check_loopback(host)
    return words if _option(words, "--port") is not None else [*words, "--port", port]


def _gunicorn(words: Sequence[str], port: str) -> list[str]:
    words = ["gunicorn", *words[1:]]
    bind = _option(words, "--bind", "-b")
    if bind is None:
        words += ["--bind", f"{HOST}:{port}"]
    else:
        _check_loopback(bind)
    return (
        words if _option(words, "--worker-class", "-k") is not None else [*words, "-k", "uvicorn_worker.UvicornWorker"]
    )


def _check_loopback(host: str) -> None:
    if not host.startswith(_LOOPBACK):
        raise LiveServerError(
            f"{_OPTION}: {host} can be reached from other machines; leave the address out, or say {HOST}:{{port}}"
        )


def _option(words: Sequence[str], *names: str) -> str | None:
    """Return the value of an option, written as two words or as one."""
    for place, word in enumerate(words):
        for name in names:
            if word == name:
                return words[place + 1] if place + 1 < len(words) else ""
            if name.startswith("--") and word.startswith(f"{name}="):
                return word.partition("=")[2]
    return None


def _workers(words: Sequence[str]) -> int:
    given = _option(words, "--workers", "-w") or ""
    return max(int(given), 1) if given.isdigit() else 1
