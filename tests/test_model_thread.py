"""One thread loads and runs the models of a service."""

from __future__ import annotations

import threading

import pytest

from megopt.live.model_thread import ModelThread


def test_calls_share_one_thread_and_keep_their_order() -> None:
    thread, seen = ModelThread(), []
    futures = [thread.submit(lambda number=number: seen.append((number, threading.get_ident()))) for number in range(5)]
    for future in futures:
        future.result(10.0)
    assert [number for number, _ in seen] == list(range(5))
    assert len({ident for _, ident in seen}) == 1
    assert seen[0][1] != threading.get_ident()


def test_an_error_reaches_who_asked_and_the_thread_goes_on() -> None:
    thread = ModelThread()
    with pytest.raises(ZeroDivisionError):
        thread.submit(lambda: 1 // 0).result(10.0)
    assert thread.submit(lambda: 7).result(10.0) == 7


def test_it_ends_after_what_it_was_given() -> None:
    before = set(threading.enumerate())
    thread = ModelThread()
    mine = (set(threading.enumerate()) - before).pop()
    last = thread.submit(lambda: 3)
    thread.end()
    assert last.result(10.0) == 3
    mine.join(10.0)
    assert not mine.is_alive()
