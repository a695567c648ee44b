"""Which values a statement gives to settings, and whether one of them is what was found. Pure.

Only to let somebody off: where the value is another one, it was somebody else's doing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_ARGUMENT: Final = (
    r"(?:e?'(?P<{0}_literal>(?:[^']|'')*)'|%\((?P<{0}_named>\w+)\)[sbt]|(?P<{0}_next>%[sbt])|\$(?P<{0}_number>\d+))"
)
_SET: Final = re.compile(
    r"\s*set\s+(?:session\s+(?!authorization))?(?P<name>[\w$.\"]+)\s*(?:=|\bto\b)\s*(?P<value>.+?)\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)
_SET_CONFIG: Final = re.compile(
    rf"\bset_config\s*\(\s*{_ARGUMENT.format('name')}\s*,\s*{_ARGUMENT.format('value')}", re.IGNORECASE
)
_QUANTITY: Final = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
# PostgreSQL manual, section 20.1.1.
_BYTES: Final = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_MILLISECONDS: Final = {"us": 0.001, "ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_TRUE: Final = ("on", "true", "yes", "1")
_FALSE: Final = ("off", "false", "no", "0")


def values_in(statement: str, parameters: Any = None) -> Mapping[str, str]:
    """Return the values that a statement gives to settings, by their names in lower case; those that can be told.

    Args:
        statement: One statement, as it was given to the driver.
        parameters: Its parameters.
    """
    found = {}
    if (match := _SET.fullmatch(statement)) is not None:
        found[match["name"].replace('"', "").lower()] = match["value"]
    for match in _SET_CONFIG.finditer(statement):
        name, value = (_argument(match, which, statement, parameters) for which in ("name", "value"))
        if isinstance(name, str) and isinstance(value, str):
            found[name.lower()] = value
    return found


def is_another(written: str, found: str) -> bool:
    """Tell whether a value that was found is for certain not the one that was written.

    Args:
        written: As a statement has it.
        found: As ``pg_settings`` has it, with its unit.
    """
    one, other = _bare(written), _bare(found)
    for same in (_TRUE, _FALSE):
        if one in same and other in same:
            return False
    quantities = _QUANTITY.fullmatch(written.strip("' ")), _QUANTITY.fullmatch(found)
    if quantities[0] is not None and quantities[1] is not None:
        return _are_other_quantities(quantities[0], quantities[1])
    return one != other


def _are_other_quantities(written: re.Match[str], found: re.Match[str]) -> bool:
    # What has no unit is in the unit that the setting has by itself.
    unit = written[2] or found[2]
    for units in (_BYTES, _MILLISECONDS):
        if unit in units and found[2] in units:
            step = units[found[2]]
            # The server rounds to its own unit.
            return abs(float(written[1]) * units[unit] / step - float(found[1])) > 1
    return unit == found[2] and float(written[1]) != float(found[1])


def _bare(value: str) -> str:
    return re.sub(r"[\s'\"]", "", value).lower()


def _argument(match: re.Match[str], which: str, statement: str, parameters: Any) -> Any:
    if (literal := match[f"{which}_literal"]) is not None:
        return literal.replace("''", "'")
    if named := match[f"{which}_named"]:
        return parameters.get(named) if isinstance(parameters, Mapping) else None
    if not isinstance(parameters, Sequence) or isinstance(parameters, (str, bytes)):
        return None
    if number := match[f"{which}_number"]:
        index = int(number) - 1
    else:
        before = statement[: match.start(f"{which}_next")].replace("%%", "")
        index = len(re.findall(r"%[sbt]", before))
    return parameters[index] if 0 <= index < len(parameters) else None
