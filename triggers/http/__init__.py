"""The HTTP trigger: a method and a path at which a function answers."""

from headrace.triggers.http.trigger import Http
from headrace.triggers.http.webhook import Webhook

__all__ = ["Http", "Webhook"]
