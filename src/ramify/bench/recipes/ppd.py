"""Parallel prompt decoding's ablations: training, what guesses see, sharing out prompt tokens, size of the tree.

What training is worth is measured on a small model of characters (``ramify.bench.letters``) as well, whose tokens are
guessed ahead often enough for differences to show. The measure is tokens per target call on held-out text; sampling
uses the noise of each position, so that all variants write the same text, and none is flattered by loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ramify.api import generate
from ramify.bench.compare import compare
from ramify.bench.letters import CONTEXT, letter_lm, letters, train_on_letters
from ramify.bench.prompts import Prompt, held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.drafters import rows_of
from ramify.methods.base import Method
from ramify.methods.draft.medusa import Medusa
from ramify.methods.draft.medusa_head import MedusaHead
from ramify.methods.draft.ppd import Ppd
from ramify.methods.draft.ppd_head import PromptTokens
from ramify.methods.draft.sparse_tree import ALLOCATIONS, VICUNA_7B, dynamic_tree
from ramify.methods.head import Head, load_head, teach
from ramify.methods.registry import create
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM, load
from ramify.train.data import library_files

RATE = 0.03
DRAWS = 5  # of untrained prompt tokens
CHAIN: dict[str, Any] = {"budget": 2, "allocation": "chain"}
ABLATIONS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "no decay (α = 1)": {"decay": 1.0},
    "targets: the text itself, no teacher": {"targets": "hard"},
    "targets: the model's own greedy text (paper)": {"targets": "own"},
    "one insertion a window (paper)": {"insertions": 1},
    "m = 4": {"ensemble": 4},
    "m = 4, mask decoder": {"ensemble": 4, "mask": "decoder"},
    "m = 4, mask encoder": {"ensemble": 4, "mask": "encoder"},
}


@dataclass(frozen=True)
class Settings:
    """What all measurements share."""

    seed: int
    temperature: float
    max_new_tokens: int

    def tokens_per_call(self, lm: CausalLM, prompts: Sequence[Any], method: Method) -> dict[str, float]:
        """Greedy and sampled, all prompts together."""
        sampled = {"do_sample": True, "temperature": self.temperature}
        found = {}
        for name, how in (("greedy", {}), (f"T = {self.temperature}", sampled)):
            tokens = calls = 0
            for index, prompt in enumerate(prompts):
                given: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "seed": 1000 * self.seed + index, **how}
                stats = generate(lm, prompt, method, **given).stats
                tokens, calls = tokens + stats.generated_tokens, calls + stats.target_calls
            found[name] = tokens / calls
        return found


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    head: str | None = None,
    prompts: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 0.7,
    letter_steps: int = 1200,
    steps: int = 400,
    ablation_steps: int = 100,
    repeats: int = 3,
) -> Outcome:
    """All tables. ``head``: prompt tokens for ``model``, None for the bundled ones. The steps are those on characters,
    ``letter_steps`` the ones of their model."""
    settings = Settings(seed, temperature, max_new_tokens)
    small = letter_lm(steps=letter_steps, seed=seed)
    text = torch.tensor(letters(library_files()[1], 50_000, seed))
    windows = text.unfold(0, CONTEXT + 1, CONTEXT)[:32]
    quality = nats(small, windows)
    lm = load(model, dtype="float32")
    asked = held_out_prompts(prompts, seed=seed)
    tables = [
        Table(
            f"Characters, model of {parameters(small.model)} parameters ({quality:.2f} nats a held-out one): "
            f"{steps} steps, chain of three guesses",
            training(small, windows, steps, settings),
        ),
        Table(f"Characters: {ablation_steps} steps each", ablations(small, windows, ablation_steps, settings)),
        Table(
            f"{lm.name}, float32: tokens per call, {prompts} held-out prompts × {max_new_tokens} tokens",
            allocations(lm, asked, load_head(PromptTokens, head, lm), settings),
        ),
    ]
    fast = load(model)
    tables += sizes(fast, asked, load_head(PromptTokens, head, fast), settings, repeats)
    published = ", ".join(
        f"{dynamic_tree(VICUNA_7B, budget).expected:.4f} for B = {budget}" for budget in (50, 60, 105)
    )
    naive = ", ".join(f"{dynamic_tree(VICUNA_7B, budget, 'naive').expected:.4f}" for budget in (50, 60, 105))
    notes = [
        f"E from the rank accuracies of the trees published for Vicuna-7B: {published}; with as many prompt tokens for "
        f"every guess {naive}.",
        "Expected: 1 + E from the head's own rank accuracies, which takes the distances as independent.",
    ]
    return Outcome(tables, notes)


def training(lm: CausalLM, windows: Tensor, steps: int, settings: Settings) -> list[dict[str, Any]]:
    """Prompt tokens before training (whose quality is luck: several draws) and after, and Medusa's heads.

    Heads are trained for equally many steps, and draft a chain of three.
    """
    starts = [window[:64].tolist() for window in windows]

    def row(name: str, head: Head, method: Method) -> dict[str, Any]:
        known: dict[str, Any] = {"head": name, "parameters": parameters(head)}
        return known | agreement(lm, head, windows) | settings.tokens_per_call(lm, starts, method)

    rows = []
    for draw in range(DRAWS):
        torch.manual_seed(1000 * settings.seed + draw)
        untrained = PromptTokens.new(lm).requires_grad_(False)
        rows.append(row(f"prompt tokens, untrained, draw {draw + 1}", untrained, Ppd(head=untrained, **CHAIN)))
    mean = {name: sum(each[name] for each in rows) / DRAWS for name in rows[0] if isinstance(rows[0][name], float)}
    rows.append(rows[0] | {"head": "prompt tokens, untrained, mean"} | mean)
    trained = train_on_letters(PromptTokens, lm, steps=steps, learning_rate=RATE, seed=settings.seed)
    rows.append(row("prompt tokens, trained", trained, Ppd(head=trained, **CHAIN)))
    medusa = train_on_letters(MedusaHead, lm, steps=steps, learning_rate=3e-3, seed=settings.seed, heads=3)
    medusa.accuracy[..., 1:] = 0.0  # leaves the chain of the first guesses
    rows.append(row("Medusa heads, trained", medusa, Medusa(head=medusa, nodes=3)))
    return rows


@torch.no_grad()
def nats(lm: CausalLM, windows: Tensor) -> float:
    """Cross-entropy of the text under the model."""
    logits = teach(lm, windows[:, :-1]).logits.float()
    return float(cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def ablations(lm: CausalLM, windows: Tensor, steps: int, settings: Settings) -> list[dict[str, Any]]:
    """Agreement with the target after equally many steps."""
    rows: list[dict[str, Any]] = []
    for name, sizes in ABLATIONS.items():
        sizes = {"insertions": 32} | sizes
        head = train_on_letters(PromptTokens, lm, steps=steps, learning_rate=RATE, seed=settings.seed, **sizes)
        row: dict[str, Any] = {"prompt tokens": name}
        rows.append(row | head.measure(lm, windows))
    return rows


def allocations(
    lm: CausalLM, asked: Sequence[Prompt], trained: PromptTokens, settings: Settings
) -> list[dict[str, Any]]:
    """The ways to share out prompt tokens, with trained and untrained ones."""
    torch.manual_seed(settings.seed)
    untrained = PromptTokens.new(lm).requires_grad_(False)
    untrained.accuracy.copy_(trained.accuracy)  # the same trees
    texts = [prompt.text for prompt in asked]
    rows: list[dict[str, Any]] = []
    for budget in (20, 60):
        for allocation in ALLOCATIONS:
            if allocation == "chain" and budget != 20:
                continue
            tree = dynamic_tree(trained.accuracy[1].tolist(), budget, allocation)
            found: dict[str, Any] = {
                "prompt tokens": allocation if allocation == "chain" else f"{allocation}, B = {budget}",
                "rows": tree.rows,
                "expected": 1.0 + tree.expected,
            }
            for name, head in (("untrained", untrained), ("trained", trained)):
                method = create("ppd", head=head, budget=budget, allocation=allocation)
                rates = settings.tokens_per_call(lm, texts, method)
                found |= {f"{how}, {name}": rate for how, rate in rates.items()}
            rows.append(found)
    return rows


def sizes(
    lm: CausalLM, asked: Sequence[Prompt], trained: PromptTokens, settings: Settings, repeats: int
) -> list[Table]:
    """Stage 2: what the machine's cost curve expects of every budget, and what some of them give by the clock."""
    curve = calibrate(lm)
    kind = str(lm.dtype).removeprefix("torch.")
    rows: list[dict[str, Any]] = []
    accuracy = trained.accuracy[1].tolist()
    for prompts in range(1, len(accuracy) + 1):
        for budget in (4, 8, 16, 32, 60):
            tree = dynamic_tree(accuracy[:prompts], budget)
            rows.append(
                {
                    "n": prompts,
                    "B": budget,
                    "guesses": "/".join(str(len(each.paths)) for each in tree.trees),
                    "rows": tree.rows,
                    "1 + E": 1.0 + tree.expected,
                    "pass, × plain": curve.ratio(tree.rows),
                    "expected speed-up": (1.0 + tree.expected) / curve.ratio(tree.rows),
                }
            )
    methods: list[str | Method] = ["sample", Ppd(head=trained), *(Ppd(head=trained, budget=b) for b in (8, 32))]
    how: dict[str, Any] = {"do_sample": True, "temperature": settings.temperature, "seed": settings.seed}
    timed = compare(lm, asked, methods, max_new_tokens=settings.max_new_tokens, repeats=repeats, **how)
    return [
        Table(f"{lm.name}, {kind}: budgets by the cost curve, sampled text", rows),
        Table(f"{lm.name}, {kind}: temperature {settings.temperature}, timed in turn", rows_of(timed)),
    ]


def agreement(lm: CausalLM, head: Head, windows: Tensor) -> dict[str, float]:
    """How often the first guess is the target's own choice, by distance."""
    return {name: rate for name, rate in head.measure(lm, windows).items() if name.startswith("agreement")}


def parameters(module: torch.nn.Module) -> str:
    """How many parameters, for people."""
    return f"{sum(weight.numel() for weight in module.parameters()):,}"
