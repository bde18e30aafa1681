"""The paths of one request, how they begin and end, and what has been spent on them."""

from __future__ import annotations

from ramify.engine.events import Accepted, Ended, Event, Forked
from ramify.engine.path import Path
from ramify.errors import RamifyError


class Roster:
    """What every pool keeps, wherever its paths grow: all that a policy needs which only looks at whole paths.

    ``row``: what the events call the request. ``paths``: every path there ever was, by number. ``live``: those that
    have not ended. ``step``: how often the paths have grown. ``spent``: effective tokens so far: tokens drawn for any
    path, and extra passes over one of them. ``budget``: how many end the loop, None for no bound. ``stopped``: why the
    loop was ended, None before. ``settled``: the tokens of the final text that are already given out.
    """

    def __init__(self, row: int = 0, budget: int | None = None) -> None:
        if budget is not None and budget < 1:
            raise RamifyError(f"the budget is {budget} tokens; give at least 1, or none")
        self.row, self.budget = row, budget
        self.paths: list[Path] = []
        self.live: list[Path] = []
        self.step = self.spent = 0
        self.settled: list[int] = []
        self.stopped: str | None = None
        self.events: list[Event] = []

    @property
    def ended(self) -> list[Path]:
        """Paths that came to their own end, in the order of their numbers."""
        return [path for path in self.paths if path.complete]

    @property
    def running(self) -> bool:
        """Whether the loop goes on."""
        return bool(self.live) and self.stopped is None

    def start(self, count: int) -> list[Path]:
        """``count`` new paths at the prompt."""
        return [self._enter(Path(len(self.paths))) for _ in range(count)]

    def prune(self, path: Path, reason: str) -> None:
        """End a live path before its own end, or take back one that came to it; what it has stays in ``paths``."""
        if path.finish is None:
            self._end(path, reason)
        else:
            path.finish, path.answer = reason, None
            self.events.append(Ended(self.row, self.step, path.number, reason))

    def stop(self, reason: str) -> None:
        """End the loop; the live paths are cut."""
        self.stopped = reason

    def settle(self, path: Path) -> None:
        """Give out everything that ``path`` has so far: every path that is kept from now on begins with it."""
        self.events.append(Accepted(self.row, self.step, (), tuple(path.tokens[len(self.settled) :]), 0.0))
        self.settled = list(path.tokens)

    def drain(self) -> list[Event]:
        """What happened since the last call."""
        happened, self.events = self.events, []
        return happened

    def receive(self, path: Path, reason: str) -> None:
        """``path`` came in whole, as a server gives it, and ended by ``reason``."""
        self._end(path, reason)
        self._grew(len(path))

    def _enter(self, path: Path) -> Path:
        self.paths.append(path)
        self.live.append(path)
        self.events.append(Forked(self.row, self.step, path.number, path.parent, path.start))
        return path

    def _end(self, path: Path, reason: str) -> None:
        path.finish = reason
        self.live.remove(path)
        self.events.append(Ended(self.row, self.step, path.number, reason))

    def _grew(self, tokens: int) -> None:
        """Count ``tokens`` drawn in one step, and stop where the budget is spent."""
        self.spent += tokens
        self.step += 1
        if self.budget is not None and self.spent >= self.budget and self.live:
            self.stop("budget")
