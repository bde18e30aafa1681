"""The routing ensemble: nothing without noise, only the next law with it, and its bill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build, byte_tokenizer, fresh, lm, text

from ramify.api import generate, prepare
from ramify.engine.events import Refined, Scored
from ramify.engine.pool import Pool
from ramify.engine.search import search
from ramify.errors import RamifyError
from ramify.methods.registry import create
from ramify.methods.search.routes import Routes, merged
from ramify.methods.search.routing_ensemble import Ensemble, RoutingEnsemble
from ramify.models.routing import Routers

PROMPT = text(7)
MODEL = "qwen3_moe"


def run(method: Any = "routing-ensemble", new: int = 12, seed: int = 4, **settings: Any) -> Any:
    return generate(lm(MODEL), PROMPT, method, max_new_tokens=new, seed=seed, **settings)


def pool_of(paths: int, seed: int = 4) -> Pool:
    [request] = prepare(lm(MODEL), [PROMPT], create("sample"), max_new_tokens=20, seed=seed)
    pool = Pool(lm(MODEL), request)
    pool.start(paths)
    return pool


def test_no_noise_is_plain_decoding() -> None:
    for do_sample, plain in ((True, "sample"), (False, "greedy")):
        found = run(RoutingEnsemble(tau=0.0, routes=2), do_sample=do_sample)
        assert found.tokens == run(plain).tokens
    assert run(RoutingEnsemble(tau=3.0), new=20, do_sample=False).tokens != run("greedy", new=20).tokens


def test_paths_do_not_depend_on_each_other() -> None:
    alone = run(RoutingEnsemble(tau=1.0), do_sample=True)
    several = run(RoutingEnsemble(tau=1.0, paths=3), do_sample=True)
    assert next(path for path in several.paths if path.number == 0).tokens == alone.tokens
    assert run(RoutingEnsemble(tau=1.0), do_sample=True).tokens == alone.tokens


def test_cache_and_statistics_stay_clean() -> None:
    routers = Routers(lm(MODEL))
    routes = Routes(routers, 3, 2.0)
    pool = pool_of(4)
    for step in range(8):
        chosen = pool.live[step % 3 :: 2]
        logits = routes(pool, chosen)
        for path, row in zip(chosen, logits, strict=True):
            expected = fresh(MODEL, [*PROMPT, *path.tokens])[-1]
            torch.testing.assert_close(row[0], expected, atol=1e-4, rtol=1e-4)
            assert (row[1:] - expected).abs().max() > 1e-3
            pool.set_logits(path, merged(row[None], clean=False, by_confidence=False, top=5)[0])
        clean = torch.stack([fresh(MODEL, [*PROMPT, *path.tokens])[-1].log_softmax(-1) for path in pool.live])
        torch.testing.assert_close(pool.log_probs(pool.live), clean, atol=1e-4, rtol=1e-4)
        if step == 3:
            pool.fork(pool.live[1])
        pool.advance(pool.sample(pool.live[step % 2 :]))
    assert 0 < routes.changed <= 1
    assert len(pool.live) == 5


def test_the_bill() -> None:
    found = run(RoutingEnsemble(routes=3), new=5)
    refined = [event for event in found.events if isinstance(event, Refined)]
    assert [event.routes for event in refined] == [3] * 5
    assert sum(event.nodes for event in found.events if isinstance(event, Scored)) == 5 * 4 + 4
    assert found.cost.row_steps == 24
    assert found.cost.recomputed_tokens == 5
    assert found.cost.generated_tokens == 5
    cut = run(RoutingEnsemble(routes=3, budget=12), new=30)
    assert len(cut.tokens) == 3
    assert cut.finish == "budget"


def test_merging() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 4, 30)
    assert torch.allclose(merged(logits, clean=False, by_confidence=False, top=5), logits[:, 1:].mean(1))
    assert torch.allclose(merged(logits, clean=True, by_confidence=False, top=5), logits.mean(1))
    weighed = merged(logits, clean=True, by_confidence=True, top=5)
    torch.testing.assert_close(weighed.softmax(-1).sum(-1), torch.ones(2))
    top = -logits.log_softmax(-1).topk(5).values.mean(-1)
    expected = sum(top[:, j, None] / top.sum(1)[:, None] * logits[:, j] for j in range(4))
    torch.testing.assert_close(weighed, expected)
    same = logits[:, :1].expand(2, 4, 30)
    torch.testing.assert_close(merged(same, clean=True, by_confidence=True, top=5), logits[:, 0])


def test_weights_of_a_merge() -> None:
    """Confidences 3, 2 and 1 weigh 1/2, 1/3 and 1/6: laws whose likeliest token has log-probability −3, −2, −1."""
    rows = []
    for confidence in (3.0, 2.0, 1.0):
        chance = torch.tensor(-confidence).exp()
        others = int((1 - chance) / chance) + 1
        law = torch.zeros(40)
        law[0] = chance
        law[1 : 1 + others] = (1 - chance) / others
        rows.append(law.log().clamp_min(-50))
    logits = torch.stack(rows)[None]
    found = merged(logits, clean=True, by_confidence=True, top=1)[0]
    expected = logits[0, 0] / 2 + logits[0, 1] / 3 + logits[0, 2] / 6
    torch.testing.assert_close(found, expected)


def test_a_policy_counts_what_it_changed() -> None:
    method = RoutingEnsemble(tau=5.0, routes=2)
    policy = method.policy(lm(MODEL), pool_of(1).request)
    assert isinstance(policy, Ensemble)
    list(search(lm(MODEL), pool_of(1).request, policy))
    assert policy.routes.read == 20
    assert policy.routes.changed > 0.3


def test_only_unsure_tokens_are_read_again() -> None:
    plain = run("sample", new=20, do_sample=True)
    assert run(RoutingEnsemble(tau=3.0, above=99.0), new=20, do_sample=True).tokens == plain.tokens
    entropies = sorted(run(RoutingEnsemble(tau=3.0), new=20, do_sample=True).paths[0].entropies)
    found = run(RoutingEnsemble(tau=3.0, above=entropies[12]), new=20, do_sample=True)
    refined = [event for event in found.events if isinstance(event, Refined)]
    [path] = found.paths
    assert 0 < len(refined) == sum(entropy >= entropies[12] for entropy in path.entropies) < 20


def test_hypers_refinement_by_itself() -> None:
    """Weighed by confidence, the own route among them, experts that a copy took handicapped for the next."""
    from ramify.methods.search.hyper import HyPER
    from ramify.methods.search.hyper_controller import HyperRec

    always = HyperRec(start=1, agree=2.0, refine_above=-1.0)
    hyper = HyPER(
        length_sign=1, interval=1, warmup=1, limit=9, noise=2.0, reuse=5.0, prune=False, random=(0, 1, 0, 0), rec=always
    )
    after = next(path for path in run(hyper, new=12).paths if path.number == 1)
    alone = RoutingEnsemble(2, 2.0, clean=True, by_confidence=True, reuse=5.0, paths=2)
    found = next(path for path in run(alone, new=40, do_sample=True).paths if path.number == 1)
    assert found.tokens[0] == after.tokens[0]  # before the first decision of the one, the prompt's own law of the other
    assert found.tokens != run(RoutingEnsemble(2, 2.0, paths=2), new=40, do_sample=True).paths[1].tokens


def test_bad_input() -> None:
    with pytest.raises(RamifyError, match="routes and paths must be at least 1"):
        RoutingEnsemble(routes=0)
    with pytest.raises(RamifyError, match="tau is -1"):
        RoutingEnsemble(tau=-1.0)
    with pytest.raises(RamifyError, match="above is -2; give 0 at least"):
        RoutingEnsemble(above=-2.0)
    with pytest.raises(RamifyError, match="has no expert routers"):
        generate(lm("llama"), PROMPT, "routing-ensemble", max_new_tokens=3)


def test_votes() -> None:
    from ramify.models.causal import load

    model = load(build(MODEL, vocab_size=258, pad_token_id=256), tokenizer=byte_tokenizer())
    found = generate(
        model,
        "once upon",
        RoutingEnsemble(tau=1.0, paths=4),
        max_new_tokens=6,
        do_sample=True,
        answer=lambda text: "long" if len(text) > 2 else "short",
    )
    assert sum(found.votes.values()) == 4
    assert found.answer in ("long", "short")
