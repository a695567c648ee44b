"""A wrapper with the argument names of what it wraps, for libraries that read them from the code object.

SQLAlchemy's ``create_engine`` sorts its arguments by the names in ``Engine.__init__.__code__`` and in that of the pool:
behind a wrapper that takes ``*args, **kwargs`` it would know no ``echo=`` any more.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

Method = Callable[..., Any]


def with_arguments_of(original: Method, wrapper: Method) -> Method:
    """Make a function that calls a wrapper, and is declared as what is wrapped.

    Args:
        original: What is wrapped.
        wrapper: Takes the same arguments: named ones by position, keyword-only ones by name.
    """
    known: dict[str, Any] = {"__name__": __name__, "_pgleak_wrapper": wrapper}
    declared: list[str] = []
    passed: list[str] = []
    for name, parameter in inspect.signature(original).parameters.items():
        default = ""
        if parameter.default is not parameter.empty:
            known[f"_pgleak_default_of_{name}"] = parameter.default
            default = f"=_pgleak_default_of_{name}"
        if parameter.kind is parameter.VAR_POSITIONAL:
            declared.append(f"*{name}")
            passed.append(f"*{name}")
        elif parameter.kind is parameter.VAR_KEYWORD:
            declared.append(f"**{name}")
            passed.append(f"**{name}")
        elif parameter.kind is parameter.KEYWORD_ONLY:
            if not any(each.startswith("*") for each in declared):
                declared.append("*")
            declared.append(name + default)
            passed.append(f"{name}={name}")
        else:
            declared.append(name + default)
            passed.append(name)
    source = (
        f"def made({', '.join(declared)}):\n"
        "    __tracebackhide__ = True\n"
        f"    return _pgleak_wrapper({', '.join(passed)})\n"
    )
    exec(compile(source, "<pytest-pgleak>", "exec"), known)  # noqa: S102 - there is no other way to choose the names
    return functools.wraps(original)(known["made"])
