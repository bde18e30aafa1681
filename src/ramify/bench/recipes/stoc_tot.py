"""STOC-TOT on simulators: what its probabilities, its aggregation and its vocabulary bank are worth, in exact models.

The tree: a proposal is right with probability r, a line is right if all its steps are, and the answer of a wrong line
is one of 12. The validity of a line is sigmoid(±1 + σ·N(0, 1)), by whether it is right so far. The bank: the right
token's logit is N(μ, 1), those of all others N(0, 1); a bank masks most of them. Neither needs a language model;
``level="lm"`` measures a tiny one that was trained on worlds of facts, beside its baselines.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ramify.bench.facts_study import facts_model, worlds
from ramify.bench.recipes import Outcome, Table
from ramify.constrain.bag import Bag
from ramify.constrain.vocabulary import Vocabulary
from ramify.errors import unknown
from ramify.methods.search.stoc_tot import StocTot
from ramify.methods.search.stoc_tot_roles import Roles
from ramify.methods.search.stoc_tot_tree import RULES, Step

WRONG = 12  # wrong final answers
GOLD = "gold"
REPHRASED = ("what", "which", "whose", "who")  # stop words that make another question of the same
SETTINGS = (  # r, n, σ, strength of the signal; accuracy in our notes on the paper: first line, vote, best leaf, sum
    (0.6, 3, 0.5, 1.0, (0.36, 0.69, 0.88, 0.90)),
    (0.6, 3, 1.0, 1.0, (0.36, 0.70, 0.77, 0.86)),
    (0.6, 3, 2.0, 1.0, (0.36, 0.68, 0.57, 0.73)),
    (0.4, 3, 1.0, 1.0, (0.16, 0.29, 0.52, 0.54)),
    (0.4, 5, 1.0, 1.0, (0.16, 0.42, 0.69, 0.77)),
    (0.6, 3, 1.0, 0.0, (0.34, 0.68, 0.35, 0.61)),
)
MASKING = ((3.0, 1, (0.49, 0.78)), (3.0, 2, (0.24, 0.61)), (4.0, 1, (0.82, 0.95)), (4.0, 2, (0.67, 0.91)))
VOCABULARY, BANK = 500, 40
LEVELS = ("simulators", "lm")


@dataclass
class TableRoles(Roles):
    """A model that is right by chance, as the tables of the notes have it.

    ``right``: r. ``noise``: σ. ``signal``: 1, or 0 for validities that say nothing. ``repeat``: chance that a proposal
    rephrases an earlier one of the same list, a wrong one if there is one; everything below it is then the same.
    ``early``: chance that a line is done after one step.
    """

    generator: random.Random
    right: float
    noise: float
    signal: float = 1.0
    repeat: float = 0.0
    early: float = 0.0
    truth: dict[str, bool] = field(default_factory=dict)
    known: dict[tuple[str, str], Any] = field(default_factory=dict)

    def propose(self, question: str, path: Sequence[Step], passages: Sequence[str], count: int) -> list[str]:
        found: list[str] = self._once("propose", path, lambda: self._propose(path, count))
        return found

    def evidence(self, question: str, passages: Sequence[str]) -> list[str]:
        return []

    def answer(self, question: str, evidence: Sequence[str]) -> str:
        return question

    def valid(self, question: str, path: Sequence[Step]) -> float:
        sign = self.signal if self._right(path) else -self.signal
        value: float = self._once("valid", path, lambda: sign + self.noise * self.generator.gauss(0, 1))
        return 1 / (1 + math.exp(-value))

    def final(self, question: str, path: Sequence[Step]) -> str:
        wrong: str = self._once("final", path, lambda: f"wrong{self.generator.randrange(WRONG)}")
        return GOLD if self._right(path) else wrong

    def _propose(self, path: Sequence[Step], count: int) -> list[str]:
        if path and self.generator.random() < self.early:
            return []
        found: list[str] = []
        for place in range(count):
            if found and self.generator.random() < self.repeat:
                earlier = min(found, key=lambda each: self.truth[_fact(each)])
                found.append(f"{REPHRASED[place % len(REPHRASED)]} {earlier}")
            else:
                fact = f"fact{len(self.truth)}"
                self.truth[fact] = self._right(path) and self.generator.random() < self.right
                found.append(fact)
        return found

    def _right(self, path: Sequence[Step]) -> bool:
        return self.truth[_fact(path[-1].question)] if path else True

    def _once(self, role: str, path: Sequence[Step], make: Callable[[], Any]) -> Any:
        """What ``make`` gave when the last question of ``path`` was first asked, in whatever words."""
        key = role, _fact(path[-1].question) if path else ""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]


def _fact(question: str) -> str:
    """What a question is about, whatever its words."""
    return question.rsplit(maxsplit=1)[-1]


def run(
    *,
    seed: int = 0,
    level: str = "simulators",
    seeds: int = 3,
    questions: int | None = None,
    draws: int = 20_000,
    model: str | None = None,
) -> Outcome:
    """``level``: "simulators" or "lm".

    ``questions``: for each row of the trees and each of ``seeds``, by default 4,000; or of either kind of name, 100.
    ``draws``: for each row of the bank. ``model``: a folder of the facts model, by default one is trained first.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if level == "lm":
        return worlds(facts_model(model, seed), questions or 100, seed)
    questions = questions or 4000
    size = f"{seeds} × {questions:,} questions"
    chosen = range(seed, seed + seeds)
    return Outcome(
        [
            Table(f"The tree simulator, depth 2, {size}: accuracy", trees(chosen, questions)),
            Table(f"Variants at r = .6, n = 3, σ = 1, {size}: accuracy", variants(chosen, questions)),
            Table(
                f"The bank: {VOCABULARY} tokens, {BANK} in the bank, {draws:,} draws: exact match", bank(seed, draws)
            ),
        ],
        [
            "In brackets: the figures of our notes on the paper, from 4,000 questions. Standard error of ours: at most "
            f"{0.5 / math.sqrt(seeds * questions):.3f} (tree) and {0.5 / math.sqrt(draws):.3f} (bank)."
        ],
    )


def accuracies(
    options: StocTot, seeds: Sequence[int], questions: int, **chances: Any
) -> tuple[dict[str, float], float, float]:
    """Share of questions answered rightly by each rule; mean calls, and mean tree size."""
    hits: Counter[str] = Counter()
    calls = nodes = 0
    for seed in seeds:
        for number in range(questions):
            roles = TableRoles(random.Random(f"{seed} {chances} {number}"), **chances)
            solution = options.solve(roles, "why", [])
            hits.update(rule for rule in RULES if solution.decide(rule) == GOLD)
            calls += solution.calls.total()
            nodes += len(solution.nodes)
    asked = len(seeds) * questions
    return {rule: hits[rule] / asked for rule in RULES}, calls / asked, nodes / asked


def trees(seeds: Sequence[int], questions: int) -> list[dict[str, Any]]:
    """The rows of the notes' table, and a chain at the cost of n = 1."""
    rows = []
    for right, count, noise, signal, known in SETTINGS:
        options = StocTot(proposals=count, depth=2, nodes=1000)
        chances = {"right": right, "noise": noise, "signal": signal}
        found, calls, nodes = accuracies(options, seeds, questions, **chances)
        rows.append(
            {
                "r, n, σ": f"{right}, {count}, {noise}" + ("" if signal else ", v says nothing"),
                "first line": f"{found['first']:.3f} ({known[0]})",
                "leaf vote": f"{found['vote']:.3f} ({known[1]})",
                "best leaf": f"{found['best']:.3f} ({known[2]})",
                "Σ P": f"{found['sum']:.3f} ({known[3]})",
                "calls": calls,
                "nodes": nodes,
            }
        )
    return rows


def variants(seeds: Sequence[int], questions: int) -> list[dict[str, Any]]:
    """Walks, products of validities, lines of different length, rephrased proposals."""
    tree = StocTot(proposals=3, depth=2, nodes=1000)
    repeated, early = {"repeat": 0.5}, {"early": 0.5}
    listed: list[tuple[str, StocTot, dict[str, float]]] = [
        ("shares among siblings", tree, {}),
        ("products of validities", replace(tree, normalise="none"), {}),
        ("a chain (n = 1)", replace(tree, proposals=1), {}),
        ("8 walks", replace(tree, mode="sample"), {}),
        ("32 walks", replace(tree, mode="sample", walks=32), {}),
        ("half of the lines end after one step", tree, early),
        ("… products of validities", replace(tree, normalise="none"), early),
        ("half of the proposals rephrase a wrong one", tree, repeated),
        ("… paraphrases kept", replace(tree, paraphrase="none"), repeated),
    ]
    rows = []
    for name, options, chances in listed:
        found, calls, nodes = accuracies(options, seeds, questions, right=0.6, noise=1.0, **chances)
        columns = {"first line": "first", "leaf vote": "vote", "best leaf": "best", "Σ P": "sum"}
        if options.mode == "sample":
            found["first"] = math.nan  # its leaf may not be among those that were drawn
        shown = {column: "–" if math.isnan(found[rule]) else f"{found[rule]:.3f}" for column, rule in columns.items()}
        rows.append({"variant": name, **shown, "calls": calls, "nodes": nodes})
    return rows


def bank(seed: int, draws: int) -> list[dict[str, Any]]:
    """Exact match of answers of one or two tokens without a mask, with one, and with one that lacks the answer."""
    vocabulary = Vocabulary(VOCABULARY + 1, VOCABULARY + 1, frozenset([VOCABULARY]))
    generator = np.random.default_rng(seed)
    rows = []
    for mu, length, known in MASKING:
        logits = generator.standard_normal((draws, length, VOCABULARY + 1))
        logits[..., 0] += mu  # the right token; what else is in the bank does not matter
        logits[..., VOCABULARY] = -np.inf  # the end, which is not in question here
        found = {}
        for name, tokens in (("free", range(VOCABULARY)), ("bank", range(BANK)), ("without", range(1, BANK + 1))):
            language = Bag(vocabulary, tokens)
            mask = language.mask([language.inside])[0].numpy()
            best = torch.from_numpy(np.where(mask, logits, -np.inf)).argmax(dim=-1)
            found[name] = float((best == 0).all(dim=-1).double().mean())
        rows.append(
            {
                "μ, tokens": f"{mu:g}, {length}",
                "unconstrained": f"{found['free']:.3f} ({known[0]})",
                "with the bank": f"{found['bank']:.3f} ({known[1]})",
                "bank without the answer (recall 0)": f"{found['without']:.3f}",
            }
        )
    return rows
