"""The menu and the workers' tables name the same things; schema and migrations are the same schema."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from app.contracts.tasks import TASKS
from app.contracts.tuners import TUNERS
from app.registry.session import sqlalchemy_url
from app.registry.tables import Base


def test_every_task_of_the_menu_can_train_and_answer() -> None:
    from workers.inference.tasks import TASKS as SERVED
    from workers.training.tasks import TASKS as TRAINED

    assert set(TASKS) == set(TRAINED) == set(SERVED)


def test_every_tuner_of_the_menu_exists() -> None:
    from workers.training.tuners import TUNERS as BUILT

    assert set(TUNERS) == set(BUILT)
    assert all(task.tuners <= set(TUNERS) for task in TASKS.values())


def test_the_migrations_build_the_tables(database_url: str) -> None:
    engine = create_engine(sqlalchemy_url(database_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
