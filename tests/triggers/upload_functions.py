"""One function that notes each upload that it is called for.

A test copies this file into its own folder, since user code gets no environment that could name one.
"""

import json
import os
from pathlib import Path

from headrace import App, Context, RetryPolicy, Upload, UploadEvent

EFFECTS = Path(__file__).with_name("effects")

app = App("chaos")


@app.on(Upload("inbox", existing="run"))
@app.function(retries=RetryPolicy(retries=8, base_s=0.01, max_s=0.1))
def effect(event: UploadEvent, context: Context) -> None:
    line = json.dumps([context.invocation_id, event.key, event.etag]) + "\n"
    # One system call writes the line, so that a kill leaves all of it or nothing.
    file = os.open(EFFECTS, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.write(file, line.encode())
    os.close(file)
