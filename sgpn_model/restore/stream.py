"""Many photos through three steps that overlap: the next are prepared and the last ones finished while networks run.

The caller's thread runs the networks; a few others prepare (decode, detect, cut out) and finish (paste, encode, write). What
is in flight is bounded in number and in bytes, from the photo's first byte to its last, so a folder of any length takes the
memory of a few photos. Outcomes come in the order of the photos, whatever finishes first.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

# At most so many photos, and bytes of photos, are in flight; a photo larger than that goes alone.
MOST_PHOTOS, MOST_BYTES = 16, 192 << 20
# Threads for each of the outer steps. The networks use every core of a CPU already, so more would only disturb them.
THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))


T = TypeVar("T")


class Outcome(Generic[T]):
    """What became of one item: its result, or the error that stopped it.

    Attributes:
        index: of the item, from 0. error: what stopped it, or None.
    """

    def __init__(self, index: int, result: T | None = None, error: Exception | None = None):
        self.index, self.error = index, error
        self._result = result

    @property
    def result(self) -> T:
        """The result; raises the error where there is none."""
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"Outcome(index={self.index}, {'error' if self.error else 'result'}={self.error or self._result!r})"


@dataclass
class _Entry:
    index: int
    item: Any
    weight: int
    prepared: Future
    finished: Future = field(default_factory=Future)

    @property
    def faces(self) -> Sequence:
        return [] if self.prepared.exception() else self.prepared.result().faces


def stream(
    items: Iterable,
    prepare: Callable[[Any], Any],
    run: Callable[[Sequence], None],
    finish: Callable[[Any, Any], Any],
    weigh: Callable[[Any], int],
    batch: int,
    stopping: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Takes every item through ``prepare``, ``run`` and ``finish``.

    When the networks are free they take what is prepared by then, in order, until they have ``batch`` faces: they never
    wait for a batch to fill. An item that fails costs no other item anything; if the faces of several cannot be run
    together, each item's are run alone.

    Args:
        items: what to work on; iterated in a thread of its own.
        prepare: item -> an object with a list ``faces``; called by several threads.
        run: changes faces of one or several items in place; called by the thread that iterates over the outcomes.
        finish: item, what ``prepare`` made of it -> result; called by several threads.
        weigh: item -> the bytes that it will take; called by the thread that iterates over the items.
        batch: faces that the networks take at once.
        stopping: called when the line closes, before it waits for steps that have begun.

    Yields:
        One outcome for each item, in order.

    Raises:
        Whatever iterating over ``items`` raises, when all earlier outcomes have been yielded. On leaving early, also by
        Ctrl-C, steps that have begun are completed and no new ones are.
    """
    line = _Line(items, prepare, finish, weigh)
    try:
        while not line.is_over():
            hand = line.take(batch)
            yield from line.leave()
            line.finish(hand, _run(hand, run))
            del hand  # the next wait may be long
    finally:
        stopping()
        line.close()


def _run(hand: Sequence[_Entry], run: Callable[[Sequence], None]) -> dict[int, Exception]:
    """Runs the faces of all entries together, or else each entry's alone; the errors by the entry's place."""
    groups = [entry.faces for entry in hand]
    faces = [face for group in groups for face in group]
    try:
        if faces:
            run(faces)
        return {}
    except Exception as error:
        if sum(map(bool, groups)) == 1:
            return {next(place for place, group in enumerate(groups) if group): error}
    errors = {}
    for place, group in enumerate(groups):
        try:
            if group:
                run(group)
        except Exception as error:
            errors[place] = error
    return errors


class _Line:
    """The items in flight, in order: first those that come (being prepared), then those that leave (being finished)."""

    def __init__(self, items, prepare, finish, weigh):
        self._items, self._prepare, self._finish, self._weigh = items, prepare, finish, weigh
        self._coming: deque[_Entry] = deque()
        self._leaving: deque[_Entry] = deque()
        self._count = self._bytes = 0
        self._ended = self._stopped = False
        self._broken: BaseException | None = None
        self._changed = threading.Condition()
        self._preparing, self._finishing = ThreadPoolExecutor(THREADS, "prepare"), ThreadPoolExecutor(THREADS, "finish")
        # A daemon, for an iterable may wait for ever.
        threading.Thread(target=self._feed, name="feed", daemon=True).start()

    def _feed(self) -> None:
        try:
            for index, item in enumerate(self._items):
                if not self._admit(index, item, self._weigh(item)):
                    return
        except BaseException as error:
            self._broken = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _admit(self, index: int, item, weight: int) -> bool:
        """Waits until there is room for an item, and lets it in; false when the line was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(weight))
            if self._stopped:
                return False
            self._count, self._bytes = self._count + 1, self._bytes + weight
            entry = _Entry(index, item, weight, self._preparing.submit(self._prepare, item))
            self._coming.append(entry)
        entry.prepared.add_done_callback(self._notify)
        return True

    def _has_room(self, weight: int) -> bool:
        return not self._count or (self._count < MOST_PHOTOS and self._bytes + weight <= MOST_BYTES)

    def _notify(self, _future) -> None:
        with self._changed:
            self._changed.notify_all()

    def is_over(self) -> bool:
        """Whether every item has left.

        Raises:
            What iterating over the items raised.
        """
        with self._changed:
            if not self._ended or self._count:
                return False
        if self._broken is not None:
            raise self._broken
        return True

    def take(self, faces: int) -> list[_Entry]:
        """Waits until there is something to do; then the entries that are prepared, up to a number of faces."""
        hand: list[_Entry] = []
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready() or self._can_leave() or (self._ended and not self._count))
            while self._is_ready() and sum(len(entry.faces) for entry in hand) < faces:
                hand.append(self._coming.popleft())
        return hand

    def _is_ready(self) -> bool:
        return bool(self._coming) and self._coming[0].prepared.done()

    def _can_leave(self) -> bool:
        return bool(self._leaving) and self._leaving[0].finished.done()

    def finish(self, hand: Sequence[_Entry], errors: dict[int, Exception]) -> None:
        """Has entries finished whose faces have been run; ``errors``: by their place, what went wrong with that."""
        for place, entry in enumerate(hand):
            error = errors.get(place) or entry.prepared.exception()
            if error is None:
                entry.finished = self._finishing.submit(self._finish, entry.item, entry.prepared.result())
            else:
                entry.finished.set_exception(error)
            self._leaving.append(entry)
            entry.finished.add_done_callback(self._notify)

    def leave(self) -> Iterator[Outcome]:
        """The outcomes of the oldest entries, as far as they are finished."""
        while self._can_leave():
            entry = self._leaving.popleft()
            error: Any = entry.finished.exception()
            outcome = Outcome(entry.index, None if error else entry.finished.result(), error)
            with self._changed:
                self._count, self._bytes = self._count - 1, self._bytes - entry.weight
                self._changed.notify_all()
            del entry
            yield outcome

    def close(self) -> None:
        """Lets nobody in any more, and waits for the steps that have begun."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for pool in (self._preparing, self._finishing):
            pool.shutdown(wait=True, cancel_futures=True)
