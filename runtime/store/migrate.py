"""Migrate: bring a database of an older release to this release's schema.

Imports Alembic and SQLAlchemy, so nothing imports it unless a database is older than this release.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import NullPool


def upgrade(path: Path, revision: str = "head") -> None:
    """Run the missing revisions on a SQLite file, in one transaction: all of them, or none."""
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)

    # The driver would begin a transaction only before it changes rows, and leave CREATE TABLE outside.
    @event.listens_for(engine, "connect")
    def connected(connection: object, _: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
