"""The set trigger: uploads that belong together become one event, once they are all there."""

from headrace.triggers.uploadset.condition import Condition, Count, Manifest, Marker, Quiet
from headrace.triggers.uploadset.trigger import UploadSet

__all__ = ["Condition", "Count", "Manifest", "Marker", "Quiet", "UploadSet"]
