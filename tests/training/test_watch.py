"""A process that stops counting ends the others after a stated time; one that is slow does not."""

import threading
import time

from training.watch import Silence, Watch, prefix


class Store:
    """Numbers that all see."""

    def __init__(self):
        self.numbers = {}

    def add(self, key, amount):
        self.numbers[key] = self.numbers.get(key, 0) + amount
        return self.numbers[key]


def test_looks_count_from_the_last_time_that_a_process_moved():
    silence = Silence(0, 3)
    assert silence.look({1: 1, 2: 1}) == {1: 0, 2: 0}
    assert silence.look({1: 2, 2: 1}) == {1: 0, 2: 1}
    assert silence.look({}) == {1: 1, 2: 2}  # a store that does not answer
    assert silence.look({1: 3, 2: 4}) == {1: 0, 2: 0}


def test_a_stopped_process_is_named_and_a_living_one_is_not():
    store, told, ended = Store(), [], threading.Event()
    living = Watch(store, 1, 3, lambda _: None, beat=0.01, silence=60.0)
    first = Watch(
        store, 0, 3, lambda words: (told.append(words), ended.set()), beat=0.01, silence=0.3
    )  # 2 never counts
    assert ended.wait(20)
    living.stop(), first.stop()
    assert told[0].startswith("process 2 of 3 has not answered process 0 for 0 s: it is stopped")
    assert "resume=RUN" in told[0] and store.numbers[f"{prefix()}1"] > 1


def test_a_store_that_keeps_waiting_ends_the_process_too():
    told, ended, gate = [], threading.Event(), threading.Event()

    class Waiting(Store):
        def add(self, key, amount):
            gate.wait(20)
            return 0

    stuck = Watch(Waiting(), 0, 2, lambda words: (told.append(words), ended.set()), beat=0.01, silence=0.1)
    assert ended.wait(20)
    stuck.stop(), gate.set()
    assert told[0].startswith("process 1 of 2")


def test_a_store_that_has_ended_judges_nobody():
    class Gone(Store):
        def add(self, key, amount):
            raise RuntimeError("connection reset")

    told = []
    gone = Watch(Gone(), 0, 2, told.append, beat=0.01, silence=0.05)
    time.sleep(0.3)
    assert gone.over.is_set() and not told
