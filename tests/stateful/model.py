"""What a connection has been through, by the rules that PostgreSQL and psycopg document. It knows nothing of pgleak."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Block:
    """One `conn.transaction()`: where its savepoint is, None where it began the transaction."""

    manager: object
    tokens_before: int | None
    forced: bool


@dataclass
class Ended:
    """A transaction that ended otherwise than by an explicit rollback: what it had written should be there."""

    pid: int
    tokens: frozenset[int]
    by_return: bool = False


@dataclass(repr=False, eq=False)
class Model:
    """One connection.

    Attributes:
        living: The connection itself; None once it was dropped.
        pid: Its backend.
        autocommit: Whether statements commit by themselves.
        pool: The pool that it was taken from.
        is_closed: Whether somebody has called `close()`.
        is_open: Whether a transaction is open on it.
        failed: Whether that has failed.
        tokens: What it has written and not rolled back to a savepoint.
        blocks: The `conn.transaction()` blocks that are entered.
    """

    living: object
    pid: int
    autocommit: bool = False
    pool: object = None
    is_closed: bool = False
    is_open: bool = False
    failed: bool = False
    tokens: list[int] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def __repr__(self):
        kind = "checkout" if self.pool is not None else "connection"
        return f"<{kind} {self.pid}>"

    def begin_statement(self):
        if not self.autocommit or self.blocks:
            self.is_open = True

    def write(self, token):
        if self.is_open:
            self.tokens.append(token)

    def fail(self):
        if self.is_open:
            self.failed = True

    def enter(self, manager, forced):
        self.blocks.append(Block(manager, len(self.tokens) if self.is_open else None, forced))
        self.is_open = True

    def leave(self, by_error):
        """Leave the innermost block; return the transaction that ended with it, if nobody asked to roll it back."""
        block = self.blocks.pop()
        rolls_back = by_error or block.forced
        if block.tokens_before is None:
            return self.end(explicit=rolls_back)
        if rolls_back:
            del self.tokens[block.tokens_before :]
            self.failed = False
        return None

    def end(self, explicit, by_return=False):
        """End the transaction; return it, unless it was rolled back on purpose."""
        ended = Ended(self.pid, frozenset(self.tokens), by_return) if self.is_open and not explicit else None
        self.is_open = self.failed = False
        self.tokens = []
        return ended
