"""STOC-TOT and its baselines on the worlds of facts, over the tiny model that was trained on their roles.

All methods share one writer that remembers: equal prompts have equal replies, proposals included, so that methods are
compared on the same proposals and differ by their rule alone. Each is billed as if it had asked by itself.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from ramify.api import generate
from ramify.bench.facts import (
    ROLES,
    World,
    answer_prompt,
    chain_prompt,
    evidence_prompt,
    example,
    expand_prompt,
    final_prompt,
    valid_prompt,
    world,
)
from ramify.bench.recipes import Outcome, Table
from ramify.bench.tasks.grade import Share
from ramify.constrain.constraint import Constraint
from ramify.constrain.trie import trie
from ramify.engine.local_writer import LocalWriter
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.writer import Call
from ramify.methods.search.grounding import bank, exact_match, nearest, normalise
from ramify.methods.search.stoc_tot import StocTot
from ramify.methods.search.stoc_tot_prompts import read_numbers
from ramify.methods.search.stoc_tot_roles import PromptedRoles
from ramify.methods.search.stoc_tot_tree import Step
from ramify.methods.search.tree_of_thoughts import TreeOfThoughts
from ramify.methods.search.tree_of_thoughts_prompts import Thinker
from ramify.models.causal import CausalLM, load
from ramify.train.job import Job
from ramify.train.recipes.facts_model import train

LONGEST = 40  # tokens of a list of questions or of a chain
ANSWER = 6
POOL = 32  # chains drawn for the vote
TREE = StocTot(proposals=3, depth=2, nodes=1000)

T = TypeVar("T")


class Remembered(LocalWriter):
    """A writer over the facts model at temperature 1 that asks the model once for each prompt."""

    def __init__(self, lm: CausalLM, seed: int) -> None:
        super().__init__(lm, Sampler(greedy=False, noise=Noise(seed)), chat=False)
        self.known: dict[Any, tuple[Any, Call]] = {}

    def write(
        self,
        prompt: str,
        most: int,
        *,
        samples: int = 1,
        drawn: bool = False,
        line: bool = False,
        constraint: Constraint | None = None,
    ) -> list[str]:
        def asked() -> list[str]:
            return super(Remembered, self).write(
                prompt, most, samples=samples, drawn=drawn, line=line, constraint=constraint
            )

        # A prompt has all the words of its bank, so it is known by whether there is one.
        return self._once((prompt, most, samples, drawn, constraint is None), asked)

    def weigh(self, prompt: str, choices: Sequence[Sequence[str]]) -> list[float] | None:
        return self._once((prompt, choices), lambda: super(Remembered, self).weigh(prompt, choices))

    def _once(self, key: Any, ask: Callable[[], T]) -> T:
        if key not in self.known:
            self.known[key] = ask(), self._calls.pop()
        found, call = self.known[key]
        self._calls.append(replace(call, number=next(self._numbers)))
        return cast(T, found)


@dataclass
class FactRoles(PromptedRoles):
    """The five roles, by their tokens."""

    answer_tokens: int = ANSWER
    question_tokens: int = LONGEST

    def propose(self, question: str, path: Sequence[Step], passages: Sequence[str], count: int) -> list[str]:
        [reply] = self.writer.write(expand_prompt(passages, question, _pairs(path)), self.question_tokens, drawn=True)
        return [] if reply.strip() == "done" else [part.strip() for part in reply.split(";") if part.strip()][:count]

    def evidence(self, question: str, passages: Sequence[str]) -> list[str]:
        [reply] = self.writer.write(evidence_prompt(passages, question), 2, line=True)
        numbers = read_numbers(reply, len(passages))[:1]
        return [passages[number - 1] for number in numbers] or nearest(question, passages, 1)

    def answer(self, question: str, evidence: Sequence[str]) -> str:
        return self._answer(answer_prompt(evidence, question), self.language(question, evidence))

    def valid(self, question: str, path: Sequence[Step]) -> float:
        yes = self._yes(valid_prompt(question, _pairs(path)))
        return 0.5 if yes is None else yes

    def final(self, question: str, path: Sequence[Step]) -> str:
        evidence = list(dict.fromkeys(fact for step in path for fact in step.evidence))
        prompt = final_prompt(evidence, question, _pairs(path))
        return self._answer(prompt, self.language(question, [*evidence, question]))


@dataclass
class FactThinker(Thinker):
    """Thoughts are answered sub-questions, proposed and judged by the same roles."""

    roles: FactRoles
    facts: Sequence[str]
    steps: dict[str, Step] = field(default_factory=dict)

    def propose(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
        said = []
        for asked in self.roles.propose(question, self._path(thoughts), self.facts, count):
            evidence = self.roles.evidence(asked, self.facts)
            step = Step(asked, tuple(evidence), self.roles.answer(asked, evidence))
            said.append(f"{step.question} {step.answer}")
            self.steps[said[-1]] = step
        return said

    def answer(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
        return [self.roles.final(question, self._path(thoughts))]

    def value(self, question: str, thoughts: Sequence[str], answer: str | None, samples: int) -> float:
        valid = self.roles.valid(question, self._path(thoughts))
        return valid / max(1e-9, 1 - valid)

    def drain(self) -> list[Call]:
        return self.roles.drain()

    def _path(self, thoughts: Sequence[str]) -> list[Step]:
        return [self.steps[thought] for thought in thoughts]


def _pairs(path: Sequence[Step]) -> list[tuple[str, str]]:
    return [(step.question, step.answer) for step in path]


@dataclass
class Row:
    """What one method did on all questions: right or not, tokens written, prompts put."""

    right: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    def add(self, here: World, answer: str | None, calls: Sequence[Call]) -> None:
        self.right.append(float(answer is not None and exact_match(answer, here.answer)))
        self.tokens.append(sum(len(call.tokens) for call in calls))
        self.calls.append(len(calls))


def ask(lm: CausalLM, here: World, rows: dict[str, Row], seed: int) -> None:
    """One question by every method, into their ``rows``."""
    writer, facts = Remembered(lm, seed), [str(fact) for fact in here.facts]
    words = trie(writer.vocabulary, bank(here.question, facts), any_case=True)
    prompt = final_prompt(facts, here.question, ())
    for name, language in (("vanilla", None), ("vanilla, constrained", words)):
        [said] = writer.write(prompt, ANSWER, line=True, constraint=language)
        rows[name].add(here, said, writer.drain())
    prompt = chain_prompt(facts, here.question)
    [said] = writer.write(prompt, LONGEST, line=True)
    rows["chain of thought"].add(here, _last(said), writer.drain())
    for name, options, constraint in (
        ("STOC-TOT", TREE, "trie"),
        ("… without constrained decoding", TREE, "none"),
        ("… paraphrases kept", replace(TREE, paraphrase="none"), "trie"),
        ("… products of validities", replace(TREE, normalise="none"), "trie"),
        ("… a chain (n = 1)", replace(TREE, proposals=1), "trie"),
    ):
        solution = options.solve(FactRoles(writer, constraint), here.question, facts)
        calls = [call for node in solution.nodes for call in node.calls]
        rows[name].add(here, solution.answer, calls)
        if name == "STOC-TOT":
            rows["… without probabilities (leaf vote)"].add(here, solution.decide("vote"), calls)
            rows["… best leaf"].add(here, solution.decide("best"), calls)
    thinker = FactThinker(FactRoles(writer, "trie"), facts)
    found = TreeOfThoughts(depth=3, keep=5, proposals=3).search(thinker, here.question)
    listed = [found.root]
    for state in listed:
        listed += state.children
    rows["tree of thoughts, b = 5"].add(here, found.answer, [call for state in listed for call in state.calls])
    rows["chains, vote at equal tokens"].add(here, *_voted(writer, prompt, rows["STOC-TOT"].tokens[-1]))


def _voted(writer: Remembered, prompt: str, tokens: int) -> tuple[str | None, list[Call]]:
    """The commonest answer of as many chains as ``tokens`` allow, at least one; what they cost."""
    chains = writer.write(prompt, LONGEST, samples=POOL, drawn=True, line=True)
    [whole] = writer.drain()
    counts: dict[str, int] = {}
    spent = 0
    for chain in chains:
        length = len(writer.encode(chain)) + 1
        if spent and spent + length > tokens:
            break
        spent += length
        counts[_last(chain)] = counts.get(_last(chain), 0) + 1
    return max(counts, key=counts.__getitem__), [replace(whole, tokens=whole.tokens[:spent])]


def _last(chain: str) -> str:
    return normalise(chain.rsplit(";", 1)[-1])


ORDER = (
    "vanilla", "vanilla, constrained", "chain of thought", "chains, vote at equal tokens", "tree of thoughts, b = 5",
    "STOC-TOT", "… without constrained decoding", "… without probabilities (leaf vote)", "… best leaf",
    "… paraphrases kept", "… products of validities", "… a chain (n = 1)",
)  # fmt: skip


def facts_model(folder: str | None, seed: int) -> CausalLM:
    """The model in ``folder``, or one trained now, which takes some minutes."""
    if folder is not None:
        return load(folder)
    with tempfile.TemporaryDirectory() as out:
        for _ in train(Job(Path(out), seed=seed)):
            pass
        return load(Path(out) / "model")


def worlds(lm: CausalLM, questions: int, seed: int) -> Outcome:
    """The roles one by one, and all methods."""
    size = sum(weight.numel() for weight in lm.original.parameters())
    return Outcome(
        [
            Table(f"Worlds of facts, 2 × {questions} questions: exact match in %", table(lm, questions, seed)),
            Table("The roles: replies that are wholly the expected one, in %, 60 examples of each", roles(lm, seed)),
        ],
        [
            f"The model has {size:,} parameters. ±: 95 % interval over questions; “better by”: question by question. "
            "Tokens: written, a question; all methods but the chains share their proposals.",
        ],
    )


def roles(lm: CausalLM, seed: int, count: int = 60) -> list[dict[str, Any]]:
    """How often each role says what training would have it say, names of training and new ones apart."""
    found: list[dict[str, Any]] = []
    for role in ROLES[1:]:  # what is proposed is drawn, so no list is the expected one
        row: dict[str, Any] = {"role": role.strip("<>")}
        for held in (False, True):
            rng = random.Random(f"roles {seed} {role} {held}")
            pairs = [example(rng, role, held) for _ in range(count)]
            row["new names" if held else "known names"] = _share(_said(lm, pairs))
        found.append(row)
    return found


def _said(lm: CausalLM, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """For each prompt, whether the likeliest reply is the expected one."""
    results = generate(lm, [prompt for prompt, _ in pairs], "greedy", max_new_tokens=LONGEST)
    return [float(result.text.strip() == said) for result, (_, said) in zip(results, pairs, strict=True)]


def table(lm: CausalLM, questions: int, seed: int) -> list[dict[str, Any]]:
    """``questions`` of names from training, and as many of names that it never showed."""
    rows = {name: Row() for name in ORDER}
    worlds = []
    for held in (False, True):
        rng = random.Random(f"facts {seed} {held}")
        worlds += [(held, world(rng, held)) for _ in range(questions)]
    for place, (_, here) in enumerate(worlds):
        ask(lm, here, rows, seed + place)
    slices = {
        "bridge": [here.kind == "bridge" for _, here in worlds],
        "comparison": [here.kind == "comparison" for _, here in worlds],
        "new names": [held for held, _ in worlds],
    }
    tree = rows["STOC-TOT"]
    found = []
    for name, row in rows.items():
        line: dict[str, Any] = {"method": name, "exact match": _share(row.right)}
        for title, inside in slices.items():
            line[title] = _share([right for right, kept in zip(row.right, inside, strict=True) if kept])
        line["STOC-TOT better by"] = "" if row is tree else _share(
            [one - two for one, two in zip(tree.right, row.right, strict=True)]
        )  # fmt: skip
        line["tokens"], line["calls"] = sum(row.tokens) / len(row.tokens), sum(row.calls) / len(row.calls)
        found.append(line)
    return found


def _share(values: Sequence[float]) -> str:
    if not values:
        return "–"
    share = Share.of(list(values))
    return f"{100 * share.mean:.1f} ± {100 * share.half:.1f}"
