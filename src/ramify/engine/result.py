"""What a generation gives back, and the counters with their definitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ramify.engine.cost import Cost
from ramify.engine.events import Accepted, Decided, Drafted, Event, Finished, Noted, Prefilled, Scored
from ramify.engine.path import Path


@dataclass
class Stats:
    """Counters of one sequence.

    ``prompt_tokens``: tokens of the prompt. ``generated_tokens``: tokens committed after it (the kept tokens).
    ``target_calls``: forward passes of the target while decoding, prefill aside. ``prefill_calls``: those of the
    prefill. ``row_steps``: rows that the target evaluated while decoding, nodes of a tree counted one by one, padding
    included. ``drafted``: proposed nodes, the pending token aside. ``accepted``: proposed nodes that were committed.
    ``accepted_lengths``: how often 1, 2, … tokens were committed by one call. ``draft_calls``: target calls with at
    least one proposed node. ``accepted_depths``: at depth d = 1, 2, … below the pending token, the calls that committed
    a proposed node. ``draft_seconds``, ``score_seconds``, ``verify_seconds`` (verification and the drafter's learning),
    ``prefill_seconds``: wall time of each part; ``wall_seconds`` and ``cpu_seconds``: of the whole call, with the
    other rows of a batch.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    target_calls: int = 0
    prefill_calls: int = 0
    row_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_lengths: Counter[int] = field(default_factory=Counter)
    draft_calls: int = 0
    accepted_depths: Counter[int] = field(default_factory=Counter)
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    score_seconds: float = 0.0
    verify_seconds: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def tokens_per_call(self) -> float:
        """Mean accepted tokens (MAT): committed tokens per target call; 1.0 for plain decoding."""
        return self.generated_tokens / self.target_calls if self.target_calls else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per wall second of the whole call, prefill included."""
        return self.generated_tokens / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def decode_seconds(self) -> float:
        """Wall time after the prefill."""
        return self.wall_seconds - self.prefill_seconds

    @property
    def acceptance_rate(self) -> float:
        """Share of the proposed nodes that were committed; low for broad trees, of which only one path can be."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """For depth 1, 2, …: share of the calls with a draft that committed a proposed node there.

        It falls from depth to depth, and its sum is the mean number of accepted nodes of a call with a draft. Empty
        where the method does not report its drafts.
        """
        if not self.draft_calls:
            return []
        return [self.accepted_depths[depth] / self.draft_calls for depth in range(1, len(self.accepted_depths) + 1)]

    @property
    def off_share(self) -> float:
        """Share of the target calls without any reported node; 1.0 for plain decoding."""
        return 1.0 - self.draft_calls / self.target_calls if self.target_calls else 0.0

    @property
    def draft_share(self) -> float:
        """Share of the decoding time (drafting, scoring, verifying) that went into drafting."""
        decoding = self.draft_seconds + self.score_seconds + self.verify_seconds
        return self.draft_seconds / decoding if decoding else 0.0

    @staticmethod
    def of(events: Iterable[Event], row: int) -> Stats:
        """The counters of ``row``, gathered from a stream of events (total wall and CPU time aside)."""
        stats = Stats()
        for event in events:
            match event:
                case Prefilled() if event.row == row:
                    stats.prompt_tokens += event.tokens
                    stats.prefill_calls += event.calls
                    stats.prefill_seconds += event.seconds
                case Drafted() if event.row == row:
                    stats.drafted += len(event.tree)
                    stats.draft_calls += len(event.tree) > 0
                    stats.draft_seconds += event.seconds
                case Scored() if row in event.rows:
                    stats.target_calls += 1
                    stats.row_steps += event.nodes
                    stats.score_seconds += event.seconds
                case Accepted() if event.row == row:
                    accepted = min(len(event.path), len(event.tokens))
                    stats.generated_tokens += len(event.tokens)
                    stats.accepted += accepted
                    stats.accepted_depths.update(range(1, accepted + 1))
                    stats.accepted_lengths[len(event.tokens)] += 1
                    stats.verify_seconds += event.seconds
                case _:
                    pass
        return stats


@dataclass
class Result:
    """One finished sequence.

    ``text``: the continuation, special tokens left out. ``tokens``: its ids. ``prompt``: the prompt's ids.
    ``finish``: "stop" or "length", or why the path was cut. ``events``: everything that happened to this row.
    """

    text: str
    tokens: list[int]
    prompt: list[int]
    finish: str
    stats: Stats
    events: list[Event]

    @property
    def paths(self) -> list[Path]:
        """The paths, best first; the one text itself for methods that follow no others."""
        decided = self._decided
        return list(decided.paths) if decided else [Path(tokens=self.tokens, finish=self.finish, text=self.text)]

    @property
    def answer(self) -> str | None:
        """What the paths came to, None where no answer could be parsed, and for methods that decide nothing."""
        return self._decided.answer if self._decided else None

    @property
    def votes(self) -> dict[str, float]:
        """What each answer weighs, the greatest first."""
        votes = self._decided.votes if self._decided else {}
        return dict(sorted(votes.items(), key=lambda each: -each[1]))

    @property
    def cost(self) -> Cost:
        """What this result cost, all paths together."""
        row = next((event.row for event in self.events if isinstance(event, Finished)), 0)
        return Cost.of(self.events, row, self.stats.wall_seconds)

    @property
    def _decided(self) -> Decided | None:
        return next((event for event in self.events if isinstance(event, Decided)), None)

    @property
    def notes(self) -> list[str]:
        """What the caller should know about how the method ran."""
        return [event.text for event in self.events if isinstance(event, Noted)]

    @property
    def steps(self) -> list[tuple[Drafted | None, Accepted]]:
        """Every decoding step: its draft (None where nothing was proposed) and what was accepted of it."""
        drafts = {event.step: event for event in self.events if isinstance(event, Drafted)}
        return [(drafts.get(event.step), event) for event in self.events if isinstance(event, Accepted)]

    @staticmethod
    def finish_reason(events: Iterable[Event]) -> str:
        return next((event.reason for event in events if isinstance(event, Finished)), "length")
