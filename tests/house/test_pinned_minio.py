"""MinIO is built from source in two places, which must be of one version."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_makefile_and_the_image_build_the_same_minio() -> None:
    [makefile] = re.findall(
        r"^MINIO_VERSION := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
    )
    [image] = re.findall(
        r"^ARG MINIO_VERSION=(\S+)$", (ROOT / "Dockerfile.minio").read_text(encoding="utf-8"), re.M
    )

    assert makefile == image


def test_the_lock_file_names_only_the_public_index() -> None:
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text(encoding="utf-8")))

    assert hosts <= {"pypi.org", "files.pythonhosted.org"}
