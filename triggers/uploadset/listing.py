"""SetListing: what a bucket has of sets. Its methods block.

Imports the object stores' protocol and its own room.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from headrace.runtime.errors import NoSuchBucket, NoSuchObject
from headrace.runtime.objects.protocol import ObjectInfo, ObjectStore
from headrace.runtime.objects.trail import NAME as TRAIL
from headrace.runtime.objects.trail import NOBODY, Trail, read_trail
from headrace.triggers.uploadset.condition import FILES_MAX, Facts, Named, SetFile
from headrace.triggers.uploadset.names import MANIFEST_BYTES_MAX, BadManifest, read_manifest
from headrace.triggers.uploadset.trigger import UploadSet


class SetListing:
    """The sets of one trigger; `wants` says which objects count."""

    def __init__(self, trigger: UploadSet, objects: ObjectStore, wants: Callable[[ObjectInfo], bool]) -> None:
        self._trigger, self._objects, self._wants = trigger, objects, wants

    def of(self, name: str) -> tuple[list[ObjectInfo], bool]:
        """All objects of a set by key, markers and manifests too; and whether it has too many."""
        trigger, objects = self._trigger, self._objects
        beginning = trigger.pattern.beginning(trigger.values(name))
        found: dict[str, ObjectInfo] = {}
        for key in trigger.marker_keys(name).values():
            with contextlib.suppress(NoSuchObject):
                found[key] = objects.head(trigger.bucket, key)
        markers = len(found)
        for info in objects.iterate(trigger.bucket, beginning):
            place = None if not self._wants(info) else trigger.place(info.key)
            if place is None or place.name != name or place.is_marker:
                continue
            if len(found) - markers >= FILES_MAX:
                return sorted(found.values(), key=lambda info: info.key), True
            found[info.key] = info
        return sorted(found.values(), key=lambda info: info.key), False

    def sets(self) -> Iterator[tuple[str, list[ObjectInfo]]]:
        """All sets of the bucket, each with its objects as `of` has them, but for sets with too many; none if
        there is no bucket.

        Where each set has a folder of its own, one listing of the bucket is enough. Else there is one for
        each set.
        """
        if not self._trigger.has_folders:
            for name in self._names():
                infos, too_many = self.of(name)
                if not too_many:
                    yield name, infos
            return
        name, run = "", list[ObjectInfo]()
        with contextlib.suppress(NoSuchBucket):
            for info in self._objects.iterate(self._trigger.bucket, self._trigger.members.prefix):
                place = self._trigger.place(info.key) if self._wants(info) else None
                if place is None:
                    continue
                if place.name != name:
                    if 0 < len(run) <= FILES_MAX:
                        yield name, run
                    name, run = place.name, []
                if len(run) <= FILES_MAX:
                    run.append(info)
        if 0 < len(run) <= FILES_MAX:
            yield name, run

    def _names(self) -> list[str]:
        names = dict[str, None]()
        with contextlib.suppress(NoSuchBucket):
            for info in self._objects.iterate(self._trigger.bucket, self._trigger.members.prefix):
                place = self._trigger.place(info.key) if self._wants(info) else None
                if place is not None:
                    names[place.name] = None
        return list(names)

    def facts(self, name: str, infos: Sequence[ObjectInfo], quiet: float) -> Facts:
        """What is known of a set that consists of these objects."""
        trigger = self._trigger
        files: list[SetFile] = []
        markers: set[str] = set()
        for info in infos:
            place = trigger.place(info.key)
            if place is not None and place.is_marker:
                markers.add(info.key)
            else:
                files.append(SetFile(info.key, info.etag, info.size, info.version_id))
        manifests: dict[str, Sequence[Named]] = {}
        unread: dict[str, str] = {}
        sizes = {info.key: info.size for info in infos}
        for key in trigger.manifest_keys(name):
            if key not in markers:
                continue
            try:
                if sizes[key] > MANIFEST_BYTES_MAX:
                    raise BadManifest(f"it has {sizes[key]:,} bytes; at most {MANIFEST_BYTES_MAX:,} are read")
                data = self._objects.get(trigger.bucket, key)
                folder = key[: key.rfind("/") + 1]
                manifests[key] = read_manifest(data, bucket=trigger.bucket, folder=folder)
            except BadManifest as error:
                unread[key] = str(error)
            except NoSuchObject:
                markers.discard(key)
        return Facts(
            files=files, markers=frozenset(markers), manifests=manifests, unread=unread, quiet_s=quiet
        )

    def trail(self, infos: Sequence[ObjectInfo]) -> Trail:
        """The longest trail that led to these objects: what a function writes is among the newest."""
        longest = NOBODY
        for info in infos:
            with contextlib.suppress(NoSuchObject):
                found = self._objects.head(self._trigger.bucket, info.key)
                trail = read_trail((found.metadata or {}).get(TRAIL))
                longest = max(longest, trail or NOBODY, key=lambda trail: trail.hops)
        return longest
