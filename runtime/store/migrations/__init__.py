"""Migrations: Alembic's environment, and one file a revision in `versions`."""
