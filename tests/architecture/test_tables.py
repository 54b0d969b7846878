"""The menu and the workers' tables name the same things; schema and migrations are the same schema."""

from dataclasses import fields

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from app.contracts.hyperparameters import Hyperparameters
from app.contracts.tasks import TASKS
from app.contracts.tuners import TUNERS
from app.registry.session import sqlalchemy_url
from app.registry.tables import Base


def test_every_task_of_the_menu_can_answer_and_train_if_it_says_so() -> None:
    from workers.inference.tasks import TASKS as SERVED
    from workers.training.tasks import TASKS as TRAINED

    assert set(TASKS) == set(SERVED)
    assert {name for name, task in TASKS.items() if task.trainable} == set(TRAINED)


def test_every_tuner_of_the_menu_exists() -> None:
    from workers.training.tuners import TUNERS as BUILT

    assert set(TUNERS) == set(BUILT)
    assert set().union(*(task.tuners for task in TASKS.values())) == set(TUNERS)  # each is reachable


def test_every_hyperparameter_reaches_the_recipe() -> None:
    from workers.training.recipe import Recipe

    resolved_into_others = {"learning_rate_multiplier", "warmup_ratio"}
    used = {f.name for f in fields(Recipe)} | resolved_into_others
    assert set(Hyperparameters.model_fields) <= used


def test_the_migrations_build_the_tables(database_url: str) -> None:
    engine = create_engine(sqlalchemy_url(database_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
