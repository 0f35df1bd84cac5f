"""Reduces: how the results of chunks become one.

Imports nothing of Headrace. A tree reduce joins results in the order of the chunks, in groups whose shape the
plan fixes, so that the answer is the same to the bit whatever finished first.
"""

from collections.abc import Callable, Iterator
from typing import Any


class all_results:
    """Aggregate by a function of all results: `reduce=all_results(fn)`.

    `fn` gets an iterator of the chunks' results, in the order of the chunks, read as it goes, so that they
    never have to fit into memory together. It runs once, in a worker.
    """

    def __init__(self, function: Callable[[Iterator[Any]], Any]) -> None:
        self.function = function

    def __call__(self, results: Iterator[Any]) -> Any:
        return self.function(results)


def fold(reduce: Callable[[Any, Any], Any], values: Iterator[Any]) -> Any:
    """The values joined from the left. Raises StopIteration's error if there is none: callers have one at
    least.
    """
    found = next(values)
    for value in values:
        found = reduce(found, value)
    return found
