"""Which schema this release writes, and which it can read.

Imports nothing. A migration raises `SCHEMA` and `REVISION`; it raises `MIN_READER` only when releases that
know an older schema can no longer run on the new one (expand, then contract).
"""

SCHEMA = 3
"""The schema this release makes and migrates to, as recorded in `meta.schema`."""

MIN_READER = 2
"""The oldest schema a release must know to run on our database, as recorded in `meta.min_reader`."""

REVISION = "0003"
"""The Alembic revision of that schema."""
