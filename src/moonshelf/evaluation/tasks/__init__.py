"""What is measured, under one name: the tasks of the benchmark.

A task holds products as an encoder may see them (its *view*: a data set strips whatever would give the
answer away) and the truth beside them. `predict` gives what is kept of every row, `run` the figures made of
it. Every task has `dataset`, `name`, `view` and `products`; intervals resample whole clusters.
"""

from __future__ import annotations

from moonshelf.evaluation.tasks.labelling import AttributeSets, Fit, Labelling, says
from moonshelf.evaluation.tasks.matching import Matching, same_product_pairs
from moonshelf.evaluation.tasks.retrieval import Retrieval

Task = Retrieval | Labelling | AttributeSets | Matching  # each a `base.BaseTask`

__all__ = ["AttributeSets", "Fit", "Labelling", "Matching", "Retrieval", "Task", "same_product_pairs", "says"]


def shown_by(task: Task) -> frozenset[str]:
    """What the products of a task show: of "text" and "image"."""
    return task.query_reads if isinstance(task, Retrieval) else task.reads
