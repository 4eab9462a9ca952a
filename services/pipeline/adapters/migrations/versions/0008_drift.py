"""Looks at the drift of what is asked, answered and said."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_feedback_version_time", "feedback", ["model_version", "create_time"]),
    ("ix_captured_answers_model_time", "captured_answers", ["model", "answer_time"]),
    ("ix_captured_answers_version_time", "captured_answers", ["model_version", "answer_time"]),
)


def upgrade() -> None:
    op.create_table(
        "drift_looks",
        sa.Column("pipeline", sa.String(64), primary_key=True),
        sa.Column("signal", sa.String(16), primary_key=True),
        sa.Column("look_time", sa.BigInteger, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("key", sa.String(160), nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("p_value", sa.Float, nullable=False),
        sa.Column("level", sa.Float, nullable=False),
        sa.Column("before", sa.Float, nullable=False),
        sa.Column("now", sa.Float, nullable=False),
        sa.Column("reference_count", sa.Integer, nullable=False),
        sa.Column("live_count", sa.Integer, nullable=False),
    )
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, table, _ in INDEXES:
        op.drop_index(name, table)
    op.drop_table("drift_looks")
