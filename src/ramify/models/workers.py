"""A few threads that run one task for many numbers, under one limit for all calls."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator

from ramify.models.endpoint import RemoteError
from ramify.models.reply import Reply


class Workers:
    """At most ``limit`` tasks at any time, however many callers there are.

    The threads are daemons: a server that hangs must not keep the program from ending.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.slots = threading.Semaphore(limit)

    def run(self, task: Callable[[int], Reply], samples: int) -> Iterator[Reply]:
        """``task(0)`` … ``task(samples - 1)`` as they are done; a caller who stops leaves the rest undone.

        After a failure no further task begins; what is under way is still yielded, then the first failure is raised,
        a ``RemoteError`` with all that was yielded in its ``replies``.
        """
        waiting, done = deque(range(samples)), queue.SimpleQueue[Reply | Exception | None]()

        def work() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    with self.slots:
                        sample = waiting.popleft()
                        try:
                            done.put(task(sample))
                        except Exception as error:
                            waiting.clear()
                            done.put(error)
            done.put(None)

        working = min(samples, self.limit)
        for _ in range(working):
            threading.Thread(target=work, daemon=True).start()
        gathered: list[Reply] = []
        failure: Exception | None = None
        try:
            while working:
                match done.get():
                    case None:
                        working -= 1
                    case Reply() as reply:
                        gathered.append(reply)
                        yield reply
                    case error:
                        failure = failure or error
        finally:
            waiting.clear()
        if isinstance(failure, RemoteError):
            failure.replies = sorted(gathered, key=lambda reply: reply.sample)
        if failure is not None:
            raise failure
