"""What can be wrong with a job's input, each naming the place where it was found.

Imports the error tree only. Offsets are bytes from the start of the object; records are counted from 0 in
their chunk.
"""

from headrace.runtime.errors import HeadraceError, Invalid, PreconditionFailed


class InvalidSplit(Invalid):
    """A split was declared with a setting that cannot work: (field, why, hint)."""

    code = "invalid_split"
    final = True

    def __init__(self, field: str, why: str, hint: str = "") -> None:
        super().__init__(field, why, hint)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


class BadEncoding(Invalid):
    """Bytes that the split's encoding cannot decode: (bucket, key, byte offset, encoding, reason)."""

    code = "bad_encoding"
    final = True
    http_status = 422

    def __init__(self, bucket: str, key: str, offset: int, encoding: str, reason: str) -> None:
        super().__init__(bucket, key, offset, encoding, reason)
        self.bucket, self.key, self.offset, self.encoding, self.reason = bucket, key, offset, encoding, reason
        other = "utf-8" if encoding.startswith(("utf-16", "utf-32")) else "cp1252"
        self.hint = f'Name the file\'s own encoding in the split, for example encoding="{other}".'

    def __str__(self) -> str:
        return (
            f"{_place(self.bucket, self.key)} is not {self.encoding} at byte {self.offset:,}: {self.reason}"
        )


class BadRecord(Invalid):
    """A record that cannot be parsed: (bucket, key, byte offset of the record, record number, reason,
    hint).
    """

    code = "bad_record"
    final = True
    http_status = 422

    def __init__(self, bucket: str, key: str, offset: int, record: int, reason: str, hint: str = "") -> None:
        super().__init__(bucket, key, offset, record, reason, hint)
        self.bucket, self.key, self.offset, self.record, self.reason = bucket, key, offset, record, reason
        self.hint = hint

    def __str__(self) -> str:
        place = _place(self.bucket, self.key)
        where = f"byte {self.offset:,} (record {self.record} of its chunk)"
        return f"{place} has a bad record at {where}: {self.reason}"


class InputChanged(PreconditionFailed):
    """The object was replaced after the job was submitted: (bucket, key, its ETag then, its ETag now)."""

    code = "input_changed"
    final = True
    hint = "Submit the job again; write a file elsewhere and rename it into place."

    def __str__(self) -> str:
        bucket, key, then, now = self.args
        return f"s3://{bucket}/{key} was changed while the job ran: its ETag was {then!r} and is {now!r}"


class BadCut(HeadraceError):
    """A chunk's own parse did not end where a record starts: (bucket, key, chunk index, byte offset of its
    start).

    Quotes in the file stand where RFC 4180 allows none. Records up to the bad cut were right; the object is
    planned again by a sequential pass from `start` on, and what later chunks gave is discarded.
    """

    code = "bad_cut"
    hint = "The job cuts this object again, sequentially; set quoting=False if quotes mean nothing in it."

    def __init__(self, bucket: str, key: str, index: int, start: int) -> None:
        super().__init__(bucket, key, index, start)
        self.bucket, self.key, self.index, self.start = bucket, key, index, start

    def __str__(self) -> str:
        place = _place(self.bucket, self.key)
        return f"chunk {self.index} of {place} (from byte {self.start:,}) ends inside a record"


def _place(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}" if bucket else key or "the input"
