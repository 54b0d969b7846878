"""batch size"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("pins", sa.Column("max_batch_size", sa.Integer(), nullable=True))
