"""Words by which objects are found."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; what is there already has none."""
    op.add_column("objects", sa.Column("words", sa.Text, nullable=True))


def downgrade() -> None:
    """Forgets them."""
    op.drop_column("objects", "words")
