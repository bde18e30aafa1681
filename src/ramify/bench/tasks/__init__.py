"""Questions with answers that can be checked: generated ones, and any file of questions and answers.

``tasks(count)`` draws from the generated families (``problems.py``), ``read_tasks(path)`` reads a file, ``Task.right``
checks a completion by the frozen parser (``answers.py``), ``grade`` says how many a model gets right.
"""

from ramify.bench.tasks.answers import canonical, number, parse_answer, same_answer
from ramify.bench.tasks.files import read_tasks
from ramify.bench.tasks.grade import LENGTH, Share, complete, grade
from ramify.bench.tasks.problems import FAMILIES
from ramify.bench.tasks.task import REASONING, SPLITS, Task, draws, split_of, tasks

__all__ = [
    "FAMILIES",
    "LENGTH",
    "REASONING",
    "SPLITS",
    "Share",
    "Task",
    "canonical",
    "complete",
    "draws",
    "grade",
    "number",
    "parse_answer",
    "read_tasks",
    "same_answer",
    "split_of",
    "tasks",
]
