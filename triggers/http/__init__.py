"""The HTTP trigger: a method and a path at which a function answers."""

from headrace.triggers.http.trigger import Http

__all__ = ["Http"]
