"""The plugin for pytest."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


def test_fixture_closes_what_it_opened(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from wsthread import ListenableManager, Upgrader

        closed = []
        manager = ListenableManager(on_close=lambda conn: closed.append(conn.close_code))

        def test_open(websocket):
            for _ in range(3):
                websocket(Upgrader(manager))
            assert len(manager.connections) == 3
            manager.connections[0].close(4000)

        def test_closed():
            assert sorted(closed) == [1000, 1000, 4000]
            assert manager.connections == ()
    """)
    # Without the plugin of hypothesis, which takes longer than all other tests here together.
    pytester.runpytest("-p", "no:hypothesispytest").assert_outcomes(passed=2)
