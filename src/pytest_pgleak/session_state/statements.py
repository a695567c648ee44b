"""Which statements may leave something in a session, and which settings they name. Pure.

What a plain SELECT, INSERT, UPDATE or DELETE does ends with its transaction. A function that nobody knows may do
anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pytest_pgleak.sql import one_line


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LONGEST: Final = 2_000
"""Characters of a statement that are taken apart."""
_REMEMBERED: Final = 20_000
"""Characters of a statement up to which the answer is remembered."""
_SUSPICIOUS: Final = ("set ", "set_config", "advisory", "listen", "temp", "hold", "do ", "call ")
"""What makes the rest of a longer statement a hint: a thousand rows of values must not cost a second look."""

# PostgreSQL manual, part VI: what these do is not the session's, or ends with the transaction.
_HARMLESS: Final = _words(
    "abort alter analyze begin checkpoint close cluster comment commit deallocate drop end fetch grant import lock move"
    " notify prepare reassign refresh reindex release revoke rollback savepoint security show start truncate unlisten"
    " vacuum"
)
_QUERIES: Final = _words("copy delete explain insert merge select table update values with")
# Words that stand before a parenthesis and are no function.
_SYNTAX: Final = _words(
    "all and any array as between by case cast check coalesce conflict cube default distinct else except exists extract"
    " filter from greatest group grouping having ilike in intersect is join key lateral least like limit materialized"
    " not nullif offset on only or order over overlay partition position primary references returning rollup row select"
    " set sets similar some substring then to trim union unique using values when where with within"
    " bigint bit bool boolean char character date decimal double float int integer interval json jsonb numeric real"
    " smallint text time timestamp timestamptz timetz uuid varchar varying xml"
)
# The commonest functions that only compute, or whose effect ends with the transaction.
_FUNCTIONS: Final = _words(
    "abs age any_value avg bool_and bool_or btrim cardinality ceil ceiling char_length clock_timestamp concat concat_ws"
    " convert_from convert_to count cume_dist currval current_database current_schema current_schemas current_setting"
    " decode dense_rank digest div encode every exp first_value floor format format_type generate_series initcap"
    " isfinite justify_interval lag last_value lastval lead left length ln localtime log lower lpad ltrim max md5 min"
    " mod mode nextval now ntile num_nonnulls obj_description octet_length percent_rank pg_advisory_unlock"
    " pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock"
    " pg_advisory_xact_lock_shared pg_backend_pid pg_blocking_pids pg_current_xact_id pg_database_size"
    " pg_is_in_recovery pg_listening_channels pg_my_temp_schema pg_notify pg_relation_size pg_size_pretty pg_sleep"
    " pg_table_is_visible pg_table_size pg_terminate_backend pg_total_relation_size pg_try_advisory_xact_lock"
    " pg_try_advisory_xact_lock_shared pg_typeof phraseto_tsquery pi plainto_tsquery power quote_ident quote_literal"
    " random rank repeat replace reverse right round row_number row_to_json rpad rtrim setseed setval setweight sha256"
    " sign similarity split_part sqrt statement_timestamp stddev string_agg string_to_array strpos strip substr sum"
    " timeofday transaction_timestamp translate trunc txid_current unnest upper variance version"
    " websearch_to_tsquery width_bucket word_similarity"
)
_FAMILIES: Final = (
    *("array_", "date_", "gen_random_", "has_", "json_", "jsonb_", "make_", "percentile_", "pg_get_", "pg_stat_"),
    *("regexp_", "st_", "to_", "ts_"),
)
"""Prefixes of functions that compute; ``st_`` is PostGIS."""

_TEMPORARY: Final = re.compile(r"\b(?:temp|temporary|pg_temp\w*)\b")
_INTO_TEMPORARY: Final = re.compile(r"\binto\s+(?:(?:local|global)\s+)?(?:temp|temporary|pg_temp)\b")
_FILLED_BY_QUERY: Final = re.compile(r"\bas\s+\(?\s*(?:select|with|execute|values)\b.*", re.DOTALL)
_ENDS_WITH_TRANSACTION: Final = re.compile(r"set\s+(?:local|transaction|constraints)\b")
_LOCAL_CONFIG: Final = re.compile(r"\bset_config\s*\([^()]*,\s*(?:true|'…'::bool\w*)\s*\)")
# Possessive, so that each word is read once.
_CALL: Final = re.compile(r"""(?<![\w$".])((?:[\w$]++|"[^"]*+")\s*+\.\s*+)?+([\w$]++|"[^"]*+")\s*+\(""")
_LAST_WORD: Final = re.compile(r"(\w+)\s*$")
_NO_CALL_AFTER: Final = _words("as copy into recursive references table update with")

_IDENTIFIER: Final = r'(?:"[^"]+"|[^\W\d][\w$]*)'
_SET: Final = re.compile(
    rf"\b(?:set|reset)\s+(?:session\s+|local\s+)?({_IDENTIFIER}(?:\s*\.\s*{_IDENTIFIER})*)", re.IGNORECASE
)
_SET_CONFIG: Final = re.compile(
    r"\bset_config\s*\(\s*(?:e?'(?P<literal>[^']+)'|%\((?P<named>\w+)\)[sbt]|(?P<positional>%[sbt])|\$(?P<number>\d+))",
    re.IGNORECASE,
)
_NAME: Final = re.compile(r"[^\W\d][\w$]*(?:\.[^\W\d][\w$]*)*")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a statement says of the session.

    Attributes:
        may_leave: Whether something of it may outlive its transaction.
        hides: Whether it does not say what it does: it calls a function that is not known.
        text: The statement in lower case, on one line, without comments and literals; empty where nothing may be left.
        names: Names of the settings in it, in lower case.
        takes_names: Whether the name of a setting is among its parameters.
    """

    may_leave: bool = False
    hides: bool = False
    text: str = ""
    names: frozenset[str] = frozenset()
    takes_names: bool = False


def read(statement: str) -> Reading:
    """Read a statement. The same text is read once."""
    return _read_once(statement) if len(statement) <= _REMEMBERED else _read(statement)


def names_in(statement: str, parameters: Any = None) -> frozenset[str]:
    """Return the names of the settings that a statement sets, in lower case.

    Args:
        statement: The statement as it was given to psycopg.
        parameters: Its parameters; only the one is read that is the name in ``set_config(%s, …)``.
    """
    found = {re.sub(r'["\s]', "", match[1]) for match in _SET.finditer(statement)}
    for match in _SET_CONFIG.finditer(statement):
        name = match["literal"] or _parameter(match, statement, parameters)
        if isinstance(name, str) and _NAME.fullmatch(name):
            found.add(name)
    return frozenset(name.lower() for name in found)


def _read(statement: str) -> Reading:
    start, rest = statement[:_LONGEST], statement[_LONGEST:].lower()
    text = one_line(start, _LONGEST).lower()
    parts = [part.lstrip("( \t\n") for part in text.split(";")]
    may_leave = any(map(_may_leave, parts)) or any(word in rest for word in _SUSPICIOUS)
    if not may_leave and "set" not in text:
        return Reading()
    takes_names = any(match["literal"] is None for match in _SET_CONFIG.finditer(start))
    hides = any(map(_hides, parts))
    return Reading(may_leave, hides, text if may_leave else "", names_in(start), takes_names)


_read_once = lru_cache(maxsize=256)(_read)


def _may_leave(part: str) -> bool:
    word = re.match(r"\w*", part)
    keyword = word[0] if word else ""
    if not keyword or keyword in _HARMLESS:
        return False
    if keyword == "set":
        return _ENDS_WITH_TRANSACTION.match(part) is None
    if keyword == "create":
        query = _FILLED_BY_QUERY.search(part)
        return _TEMPORARY.search(part) is not None or (query is not None and _calls_unknown(query[0]))
    if keyword == "declare":
        return re.search(r"\bwith\s+hold\b", part) is not None or _calls_unknown(part)
    if keyword in _QUERIES:
        return _INTO_TEMPORARY.search(part) is not None or _calls_unknown(part)
    return True


def _hides(part: str) -> bool:
    keyword = part.partition(" ")[0]
    return keyword in ("do", "call", "execute") or (keyword in _QUERIES and _calls_unknown(part))


def _calls_unknown(part: str) -> bool:
    part = _LOCAL_CONFIG.sub("", part)
    for match in _CALL.finditer(part):
        schema, name = match.groups()
        if schema is None and name in _SYNTAX:
            continue
        before = _LAST_WORD.search(part, max(0, match.start() - 40), match.start())
        if before is not None and before[1] in _NO_CALL_AFTER:
            continue
        computes = name in _FUNCTIONS or name.startswith(_FAMILIES)
        if not computes or (schema is not None and schema.rstrip(" .") != "pg_catalog"):
            return True
    return False


def _parameter(match: re.Match[str], statement: str, parameters: Any) -> Any:
    if isinstance(parameters, Mapping):
        return parameters.get(match["named"]) if match["named"] else None
    if not isinstance(parameters, Sequence) or isinstance(parameters, (str, bytes)):
        return None
    if match["number"]:
        index = int(match["number"]) - 1
    elif match["positional"]:
        before = statement[: match.start("positional")].replace("%%", "")
        index = len(re.findall(r"%[sbt]", before))
    else:
        return None
    return parameters[index] if 0 <= index < len(parameters) else None
