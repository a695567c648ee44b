"""Random sequences of what one can do to connections and pools, and exactly the findings that they deserve."""

import asyncio
import contextlib
import gc
from collections import Counter

import psycopg
import psycopg_pool
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from model import Model

from pytest_pgleak.reporting import LeaksFound

MOST_CONNECTIONS = 4
POOL_SIZE = 3


class ForthError(Exception):
    """Leaves a block."""


class Direct:
    """Runs operations as they are."""

    connection, pool = psycopg.Connection, psycopg_pool.ConnectionPool
    is_one_flow = True

    def do(self, operation, *args, **kwargs):
        return operation(*args, **kwargs)

    def enter(self, manager):
        return manager.__enter__()

    def leave(self, manager, error):
        return manager.__exit__(type(error), error, None) if error else manager.__exit__(None, None, None)


class InLoop(Direct):
    """Runs each operation in an event loop, in a task of its own."""

    connection, pool = psycopg.AsyncConnection, psycopg_pool.AsyncConnectionPool
    is_one_flow = False
    runner = None

    def do(self, operation, *args, **kwargs):
        async def call():
            return await operation(*args, **kwargs)

        return self.runner.run(call())

    def enter(self, manager):
        return self.do(manager.__aenter__)

    def leave(self, manager, error):
        return self.do(manager.__aexit__, *((type(error), error, None) if error else (None, None, None)))


class Machine(RuleBasedStateMachine):
    """One example: a `no_leaks()` block in which anything may happen, and a pool around it."""

    driver = dsn = rows = pgleak = None
    next_token = 0
    steps = 0

    def __init__(self):
        super().__init__()
        self.shared = self.driver.pool(self.dsn, min_size=1, max_size=POOL_SIZE, open=False, timeout=5)
        self.driver.do(self.shared.open, True)
        self.models = []
        self.out = []
        self.own_pools = []
        self.ended = []
        self.nested = []
        self.expected = Counter()
        self.block = self.pgleak.no_leaks()
        self.block.__enter__()

    # -- rules ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.usable()) < MOST_CONNECTIONS)
    @rule(autocommit=st.booleans())
    def connect(self, autocommit):
        self.add(self.driver.do(self.driver.connection.connect, self.dsn, autocommit=autocommit), autocommit)

    @precondition(lambda self: len(self.out) < POOL_SIZE)
    @rule()
    def getconn(self):
        held = self.out[-1] if self.out and self.driver.is_one_flow else None
        model = self.add(self.driver.do(self.shared.getconn), pool=self.shared)
        if held is not None:
            self.nested.append((held, model.pid))
        self.out.append(model)

    @precondition(lambda self: len(self.own_pools) < 1)
    @rule()
    def open_pool(self):
        pool = self.driver.pool(self.dsn, min_size=1, max_size=1, open=False)
        self.driver.do(pool.open, True)
        self.own_pools.append(pool)

    @precondition(lambda self: self.own_pools)
    @rule()
    def close_pool(self):
        self.driver.do(self.own_pools.pop().close)

    @precondition(lambda self: self.usable())
    @rule(data=st.data())
    def read(self, data):
        self.execute(self.one(data), "select 1")

    @precondition(lambda self: self.usable())
    @rule(data=st.data())
    def write(self, data):
        model = self.one(data)
        Machine.next_token += 1
        if self.execute(model, f"insert into written values ({Machine.next_token})"):
            model.write(Machine.next_token)

    @precondition(lambda self: self.usable())
    @rule(data=st.data())
    def fail(self, data):
        self.execute(self.one(data), "select no_such_column")

    @precondition(lambda self: self.usable(lambda model: len(model.blocks) < 3))
    @rule(data=st.data(), forced=st.booleans())
    def enter_block(self, data, forced):
        model = self.one(data, lambda model: len(model.blocks) < 3 and not model.failed)
        if model is not None:
            manager = model.living.transaction(force_rollback=forced)
            self.driver.enter(manager)
            model.enter(manager, forced)

    @precondition(lambda self: self.usable(lambda model: model.blocks))
    @rule(data=st.data(), by_error=st.booleans())
    def leave_block(self, data, by_error):
        model = self.one(data, lambda model: model.blocks)
        # RELEASE is refused in a failed transaction, and the savepoint stays; psycopg lets the exception out.
        is_refused = model.failed and not by_error and model.blocks[-1].tokens_before is not None
        forced = model.blocks[-1].forced
        manager = model.blocks[-1].manager
        with contextlib.suppress(psycopg.Error):
            self.driver.leave(manager, ForthError() if by_error else None)
        if is_refused and not forced:
            model.blocks.pop()
        else:
            self.note(model.leave(by_error))

    @precondition(lambda self: self.usable(lambda model: not model.blocks))
    @rule(data=st.data())
    def commit(self, data):
        model = self.one(data, lambda model: not model.blocks)
        self.driver.do(model.living.commit)
        self.note(model.end(explicit=False))

    @precondition(lambda self: self.usable(lambda model: not model.blocks))
    @rule(data=st.data())
    def rollback(self, data):
        model = self.one(data, lambda model: not model.blocks)
        self.driver.do(model.living.rollback)
        model.end(explicit=True)

    @precondition(lambda self: self.usable(lambda model: not model.blocks))
    @rule(data=st.data())
    def close(self, data):
        model = self.one(data, lambda model: not model.blocks)
        self.driver.do(model.living.close)
        self.note(model.end(explicit=False))
        model.is_closed = True

    @precondition(lambda self: [model for model in self.out if model.living is not None and not model.blocks])
    @rule(data=st.data())
    def putconn(self, data):
        model = self.pick(data, [m for m in self.out if m.living is not None and not m.blocks])
        self.driver.do(self.shared.putconn, model.living)
        self.out.remove(model)
        self.models.remove(model)
        self.note(model.end(explicit=False, by_return=True))
        model.living = None

    @precondition(lambda self: self.usable(lambda model: not model.blocks))
    @rule(data=st.data())
    def drop(self, data):
        model = self.one(data, lambda model: not model.blocks)
        model.living = None
        gc.collect()
        self.expected["connection-not-returned" if model.pool else "connection-dropped", model.pid] += 1

    @invariant()
    def count(self):
        Machine.steps += 1

    # -- what a rule needs ------------------------------------------------------------------------------------------

    def add(self, living, autocommit=False, pool=None):
        model = Model(living, living.info.backend_pid, autocommit, pool)
        self.models.append(model)
        return model

    def usable(self, test=lambda _model: True):
        return [m for m in self.models if m.living is not None and not m.is_closed and test(m)]

    def one(self, data, test=lambda _model: True):
        return self.pick(data, self.usable(test))

    def pick(self, data, candidates):
        # A number, for Hypothesis keeps what it has drawn, and a dropped connection must be free.
        return candidates[data.draw(st.integers(0, len(candidates) - 1))] if candidates else None

    def execute(self, model, statement):
        model.begin_statement()
        try:
            self.driver.do(model.living.execute, statement)
        except psycopg.Error:
            model.fail()
            return False
        return True

    def note(self, ended):
        if ended is not None:
            self.ended.append(ended)

    # -- the judgement ----------------------------------------------------------------------------------------------

    def teardown(self):
        try:
            self.expect()
            found = self.findings()
        finally:
            self.clean_up()
        if self.out:
            found = Counter({key: number for key, number in found.items() if key[0] != "nested-checkout"})
        missing, accused = self.expected - found, found - self.expected
        assert not missing and not accused, f"not found: {missing}, found without a reason: {accused}"  # noqa: PT018

    def expect(self):
        for model in self.models:
            if model.pool is None and model.living is not None and not model.is_closed:
                self.expected["connection-not-closed", model.pid] += 1
        for model in self.out:
            if model.living is not None:
                self.expected["connection-not-returned", model.pid] += 1
        if self.nested and not self.out:
            # All of them come from the same line: one finding. What was never returned is the greater mistake.
            self.expected["nested-checkout", self.nested[0][1]] += 1
        self.expected["pool-not-closed", None] += len(self.own_pools)
        there = self.rows()
        for ended in self.ended:
            if ended.tokens - there:
                self.expected["write-lost", ended.pid] += 1
            elif ended.by_return:
                self.expected["returned-in-transaction", ended.pid] += 1

    def findings(self):
        try:
            self.block.__exit__(None, None, None)
        except LeaksFound as leaks:
            found = Counter()
            for finding in leaks.findings:
                if finding.subject == "transaction":
                    found.update((finding.kind, each.facts.backend_pid) for each in finding.transactions)
                else:
                    found[finding.kind, finding.connection and finding.connection.backend_pid] += 1
            return found
        return Counter()

    def clean_up(self):
        for model in self.models:
            # In order, or the generators behind the blocks would be finalized whenever the next collection comes.
            for block in reversed(model.blocks):
                with contextlib.suppress(psycopg.Error):
                    self.driver.leave(block.manager, ForthError())
            if model.living is not None:
                with contextlib.suppress(psycopg.Error):
                    self.driver.do(model.living.close)
        for pool in (*self.own_pools, self.shared):
            self.driver.do(pool.close)


def run(machine, driver, dsn, rows, pgleak):
    machine.driver, machine.dsn, machine.rows, machine.pgleak = driver, dsn, staticmethod(rows), pgleak
    Machine.steps = 0
    run_state_machine_as_test(machine)
    # Thousands of steps, not a handful that happened to be legal.
    assert Machine.steps > 1000


@pytest.mark.pgleak
def test_sync(dsn, rows, pgleak):
    run(type("SyncMachine", (Machine,), {}), Direct(), dsn, rows, pgleak)


@pytest.mark.pgleak
def test_async(dsn, rows, pgleak):
    driver = InLoop()
    with asyncio.Runner() as driver.runner:
        run(type("AsyncMachine", (Machine,), {}), driver, dsn, rows, pgleak)
