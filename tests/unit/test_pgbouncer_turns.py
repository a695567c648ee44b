from __future__ import annotations

import sys
import threading

import pytest

from pytest_pgleak.pgbouncer import turns
from pytest_pgleak.pgbouncer.turns import own_turn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody waits")


def test_one_after_the_other():
    order = []

    def second():
        with own_turn():
            order.append("second")

    with own_turn():
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.02)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_nobody_waits_for_ever(monkeypatch):
    monkeypatch.setattr(turns, "_PAUSES", 2)
    with own_turn(), own_turn():
        pass
