"""Words by their part of speech, for the sentences: past tense only, so that verbs fit every subject."""

from __future__ import annotations

WORDS = {
    "noun": """
        apple artist baker basket bicycle bird blanket boat bottle bridge captain carpet castle cat chair child
        clock coat cook desert doctor dog door engine farmer forest garden goat hammer harbour horse island kitchen
        ladder lamp letter library lion market mirror mountain musician nurse painting palace parcel piano pilot
        pirate river road robot rocket sailor scarf shadow ship singer spoon stone storm table teacher ticket tower
        train tree umbrella valley village violin wagon wall wheel window
    """,
    "transitive": """
        admired avoided blamed borrowed built carried cleaned covered crossed described discovered dropped examined
        followed found guarded ignored liked lifted loved mended missed moved noticed painted praised pulled pushed
        remembered repaired saw sold touched visited wanted washed watched
    """,
    "intransitive": """
        arrived blinked collapsed cried danced disappeared fell hesitated laughed rested shivered slept smiled
        sneezed trembled vanished waited wandered whispered yawned
    """,
    "adjective": """
        ancient angry blue bold brave bright calm careful cheerful clever cold curious dark dusty empty famous
        friendly gentle golden green heavy honest hungry kind large lazy lonely narrow noisy old patient poor proud
        quiet red rich rough round shiny silent small strange strong tall tired warm wild wise young
    """,
    "adverb": """
        badly boldly bravely calmly carefully cheerfully eagerly gently gladly happily kindly lazily nervously
        patiently politely proudly quickly quietly rapidly sadly secretly silently slowly softly suddenly warmly
    """,
    "determiner": "the a an this that every my his her our their",
    "preposition": "above at behind below beside beyond by from in inside near on over through to towards under with",
    "subject": "he I she they we",
    "object": "her him me them us",
    "pronoun": "it you",
    "conjunction": "because but so while",
    "and": "and",
    "copula": "became grew looked seemed",
}
CONTENT = ("noun", "transitive", "intransitive", "adjective", "adverb")
# What a word that is not listed may be, where unknown words are forgiven: also a name or a plural.
OPEN = frozenset({*CONTENT, "phrase"})
# Listed words that need agreement, accepted where unknown words are.
LOOSE = {
    **dict.fromkeys(("is", "are", "was", "were"), frozenset({"copula"})),
    **dict.fromkeys(("some", "these", "those", "many", "its", "your"), frozenset({"determiner"})),
    **dict.fromkeys(("when", "as", "after", "before", "until", "although"), frozenset({"conjunction"})),
    **dict.fromkeys(("of", "for", "into", "across", "around", "after", "before"), frozenset({"preposition"})),
}


def _lexicon() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for kind, listed in WORDS.items():
        for word in listed.split():
            found[word] = found.get(word, frozenset()) | {kind}
    return found


LEXICON = _lexicon()
