"""Many shared holders at once, or one exclusive holder, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

from sailq.worker.queue.shared_lock import SharedLock


def test_an_exclusive_holder_is_alone_and_goes_before_later_shared_holders() -> None:
    lock, order = SharedLock(), []
    entered, leave = threading.Barrier(3), threading.Event()

    def first() -> None:
        with lock.shared():
            entered.wait(10)  # both hold the lock
            leave.wait(10)
            order.append("shared")

    def alone() -> None:
        with lock.alone():
            order.append("alone")
            time.sleep(0.05)
            order.append("left")

    def later() -> None:
        with lock.shared():
            order.append("later")

    threads = [threading.Thread(target=target, daemon=True) for target in (first, first, alone, alone, later)]
    for thread in threads[:2]:
        thread.start()
    entered.wait(10)
    for thread in threads[2:]:
        thread.start()
        time.sleep(0.05)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["shared", "shared", "alone", "left", "alone", "left", "later"]
