"""Generation modes that transformers selects by a setting: which method runs each, and which settings are its options.

``num_beams=4`` and the like are options of methods here, under the names that they have (or had, before transformers
moved the mode out of its core). They may stand among the other settings of a call that names the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ramify.errors import RamifyError
from ramify.methods.registry import create

if TYPE_CHECKING:
    from ramify.methods.base import Method

BEAMS = ("num_beams", "length_penalty", "early_stopping")
OPTIONS: dict[str, tuple[str, ...]] = {
    "constrained-beam-search": (*BEAMS, "force_words_ids"),
    "diverse-beam-search": (*BEAMS, "num_beam_groups", "diversity_penalty"),
    "contrastive-search": ("penalty_alpha", "top_k"),
    "dola": ("dola_layers",),
    "beam-search": BEAMS,
}
# The setting that selects a mode, the more special ones first.
SELECTS = {
    "force_words_ids": "constrained-beam-search",
    "constraints": "constrained-beam-search",
    "num_beam_groups": "diverse-beam-search",
    "diversity_penalty": "diverse-beam-search",
    "penalty_alpha": "contrastive-search",
    "dola_layers": "dola",
    "num_beams": "beam-search",
}
OFF = (None, 0, 1)  # no beams, no groups, no penalty


def adopt(
    method: str | Method, options: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Method, dict[str, Any]]:
    """The method, with those of ``settings`` that are options of its mode; and the other settings."""
    own = OPTIONS.get(method, ()) if isinstance(method, str) else ()
    taken = {name: value for name, value in settings.items() if name in own}
    twice = sorted(set(taken) & set(options))
    if twice:
        raise RamifyError(f"{twice[0]} is given twice, as an option and as a setting; leave out one of them")
    others = {name: value for name, value in settings.items() if name not in taken}
    chosen = create(method, **options, **taken)
    check(others, chosen)
    return chosen, {name: value for name, value in others.items() if name not in SELECTS or name == "num_beams"}


def check(settings: Mapping[str, Any], method: Method) -> None:
    """Raise ``RamifyError`` where ``settings`` select a mode that ``method`` is not, or with other options than its."""
    for name, wanted in SELECTS.items():
        value = settings.get(name)
        if value in OFF or (method.card.name == wanted and _same(value, getattr(method, name, None))):
            continue
        if name == "num_beams" and name in OPTIONS.get(method.card.name, ()) and value == getattr(method, name):
            continue
        if name == "constraints":
            raise RamifyError(
                "constraints are objects that transformers no longer has; use method='constrained-beam-search' with "
                "force_words_ids"
            )
        given = {each: settings[each] for each in OPTIONS[wanted] if settings.get(each) is not None}
        shown = ", ".join(f"{each!r}: {option!r}" for each, option in given.items())
        raise RamifyError(
            f"{name}={value!r} asks for another method than {method.card.name} with its options; use "
            f"method={wanted!r}, options={{{shown}}}"
        )


def _same(value: Any, own: Any) -> bool:
    return bool((tuple(value) if isinstance(value, list) else value) == own)
