"""Alembic's environment: runs the revisions on the connection that `migrate.upgrade` hands over.

Alembic executes this file; nothing imports it.
"""

from alembic import context

from headrace.runtime.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
