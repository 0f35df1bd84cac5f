"""open_source: the source that fits the kind of a trigger's bucket.

Imports the trigger protocol, the folder store and its own room.
"""

from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.trigger import TriggerContext
from headrace.triggers.upload.arrival import Recorder
from headrace.triggers.upload.folder import FolderUploads
from headrace.triggers.upload.notified import NotifiedUploads
from headrace.triggers.upload.source import UploadSource
from headrace.triggers.upload.trigger import Upload


def open_source(trigger: Upload, context: TriggerContext, recorder: Recorder | None = None) -> UploadSource:
    """The source of a trigger, not yet started. `recorder` decides what becomes of an arrival: an event, by
    default.
    """
    if isinstance(context.objects, FolderStore):
        return FolderUploads(trigger, context, context.objects, recorder)
    return NotifiedUploads(trigger, context, recorder)
