"""ParallelBench: tasks that are trivial one token at a time and break, each in its way, when many are fixed at once.

"ParallelBench: Understanding the Trade-offs of Parallel Decoding in Diffusion LLMs", arXiv 2510.04767.

``tasks.py`` draws problems of every family (``lists.py``, ``puzzles.py``, ``sentences.py``, and ``texts.py`` for texts
of one's own), ``prompts.py`` writes them, ``metrics.py`` reads a sweep. ``analysis.py`` is the theory, ``denoisers.py``
and ``exact.py`` have models that follow it exactly. ``symbols.py`` has list tasks of one token per item, for small
models. No data of the published benchmark is copied: names, words and prompts are ours.
"""
