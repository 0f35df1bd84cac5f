"""What MinIO tells of its webhooks, in the forms in which it does."""

import pytest

from headrace.runtime.errors import BadRequest
from headrace.runtime.objects.s3_rules import read_webhook_settings
from headrace.runtime.objects.webhook import open_rules

TOLD = """\
notify_webhook enable=off endpoint= auth_token= queue_limit=0 queue_dir= client_cert= client_key=
# MINIO_NOTIFY_WEBHOOK_ENABLE_HEADRACE=on
# MINIO_NOTIFY_WEBHOOK_ENDPOINT_HEADRACE=http://node:8080/v1/events/minio?target=HEADRACE
notify_webhook:HEADRACE
# MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_MY_QUEUE=/var/lib/a b
notify_webhook:MY_QUEUE endpoint="http://other/" queue_dir=/old
notify_webhook:by-hand enable=on endpoint=http://node/ auth_token="a b" queue_dir="/kept here"
"""


def test_settings_are_read_from_the_environment_and_from_the_configuration() -> None:
    found = read_webhook_settings(TOLD)

    assert found == {
        "HEADRACE": {"ENABLE": "on", "ENDPOINT": "http://node:8080/v1/events/minio?target=HEADRACE"},
        "MY_QUEUE": {"ENDPOINT": "http://other/", "QUEUE_DIR": "/var/lib/a b"},
        "by-hand": {"ENABLE": "on", "ENDPOINT": "http://node/", "QUEUE_DIR": "/kept here"},
    }


def test_folders_have_no_rules() -> None:
    with pytest.raises(BadRequest, match="folders"):
        open_rules("data/buckets")
