"""Alembic's entry. The connection comes from `app.registry.migrate`; there is no offline mode."""

from alembic import context

from app.registry.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
