"""`headrace demo`: a file of reviews, split, scored and charted by a whole node in this process."""

from headrace.runtime.cli.demo.run import run_demo

__all__ = ["run_demo"]
