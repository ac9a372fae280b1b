"""Callbacks that any manager has, in each way in which they are registered. Those of connections: test_handlers.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from servers import wait_until

from wsthread import ListenableManager, Manager, SimpleManager


def by_keyword(kind: Callable[..., Manager], function: Any) -> Manager:
    return kind(on_notify=function)


def by_assignment(kind: Callable[..., Manager], function: Any) -> Manager:
    manager = kind()
    manager.on_notify = function
    return manager


def by_decorator(kind: Callable[..., Manager], function: Any) -> Manager:
    manager = kind()
    assert manager.on_notify(function) is function
    return manager


def by_method(kind: Callable[..., Manager], function: Any) -> Manager:
    class Mine(Manager):
        on_notify = staticmethod(function)

    return Mine()


def simple(**options: Any) -> SimpleManager:
    return SimpleManager(list, **options)


@pytest.mark.parametrize("kind", [Manager, ListenableManager, simple])
@pytest.mark.parametrize("way", [by_keyword, by_assignment, by_decorator, by_method])
def test_ways(way: Callable[..., Manager], kind: Callable[..., Manager]) -> None:
    told: list[Any] = []
    way(kind, lambda data: told.append(data)).notify({"logout": 42})
    wait_until(lambda: told == [{"logout": 42}])


@pytest.mark.parametrize("way", [by_keyword, by_assignment, by_decorator])
@pytest.mark.parametrize("function", [1, lambda: None, lambda one, two: None])
def test_what_could_never_work(way: Callable[..., Manager], function: Any) -> None:
    with pytest.raises(TypeError, match="^on_notify is"):
        way(Manager, function)


def test_without_a_callback_nothing_happens() -> None:
    Manager().notify(1)
