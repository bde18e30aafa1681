"""ParallelBench: tasks that are trivial one token at a time and break, each in its way, when many are fixed at once.

"ParallelBench: Understanding the Trade-offs of Parallel Decoding in Diffusion LLMs", arXiv 2510.04767. ``symbols.py``
has list tasks of one token per item, for the smallest models.
"""
