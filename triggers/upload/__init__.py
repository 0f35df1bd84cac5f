"""The upload trigger: a bucket whose new objects become events."""

from headrace.triggers.upload.trigger import EVENTS, Upload

__all__ = ["EVENTS", "Upload"]
