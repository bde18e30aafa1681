"""Constraints on what a model may say: words, answer sets, spans of a text, regular expressions, JSON.

allowed = phrases(Vocabulary.of(lm), ["Paris", "Lyon"])
ramify.generate(lm, prompt, logits_processor=[Constrained(allowed, len(lm.encode(prompt)))])
score_phrases(lm, prompt, ["Paris", "Lyon"]).probabilities
"""

from ramify.constrain.answers import AnswerScores, Trace, score_answers, score_phrases, trace
from ramify.constrain.bag import Bag, bag
from ramify.constrain.constraint import Constraint, State
from ramify.constrain.grammar import Grammar, json_schema, regex
from ramify.constrain.graph import Graph
from ramify.constrain.processor import Constrained
from ramify.constrain.span import span
from ramify.constrain.trie import phrases, trie
from ramify.constrain.vocabulary import Vocabulary, words

__all__ = [
    "AnswerScores",
    "Bag",
    "Constrained",
    "Constraint",
    "Grammar",
    "Graph",
    "State",
    "Trace",
    "Vocabulary",
    "bag",
    "json_schema",
    "phrases",
    "regex",
    "score_answers",
    "score_phrases",
    "span",
    "trace",
    "trie",
    "words",
]
