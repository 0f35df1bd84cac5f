"""What can go wrong between us and an S3 server, beyond what every object store may say.

Imports the error tree only.
"""

from headrace.runtime.errors import Retryable, Unusable


class ObjectServerUnavailable(Retryable):
    """An S3 server did not answer, or only that it has too much to do: (url, why)."""

    code = "object_server_unavailable"
    hint = "Check that it runs and that --objects names it; what was tried is safe to try again."

    def __str__(self) -> str:
        return f"the object server at {self.args[0]} is not available: {self.args[1]}"


class ObjectServerRefuses(Unusable):
    """An S3 server does not let this node do something: (url, what, why)."""

    code = "object_server_refuses"
    hint = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, their policy, and the region in --objects."

    def __str__(self) -> str:
        return f"the object server at {self.args[0]} refuses {self.args[1]}: {self.args[2]}"


class ConditionalWritesUnsupported(Unusable):
    """An S3 server ignores the conditions of writes, so a conditional put would overwrite: (url)."""

    code = "conditional_writes_unsupported"
    hint = "Put without a condition, or use a server that knows If-Match and If-None-Match on PutObject."

    def __str__(self) -> str:
        return f"the object server at {self.args[0]} does not heed If-Match and If-None-Match in writes"
