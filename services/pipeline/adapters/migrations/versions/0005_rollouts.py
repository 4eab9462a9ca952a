"""Roll-outs of new versions, their figures, and the audit trail."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_REFUSAL = "the audit trail is never changed"


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(80), nullable=False, index=True),
        sa.Column("at_work", sa.String(80), nullable=True, unique=True),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("applied", sa.Boolean, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "rollout_calls",
        sa.Column("answer", sa.String(80), primary_key=True),
        sa.Column("rollout_id", sa.String(64), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("candidate", sa.Boolean, nullable=False),
        sa.Column("unit", sa.String(80), nullable=False),
        sa.Column("latency_ms", sa.Float, nullable=True),
        sa.Column("label", sa.String(256), nullable=False),
    )
    op.create_index("ix_rollout_calls_step", "rollout_calls", ["rollout_id", "step", "candidate"])
    op.create_table(
        "rollout_counts",
        sa.Column("rollout_id", sa.String(64), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("candidate", sa.Boolean, primary_key=True),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("errors", sa.Integer, nullable=False),
        sa.Column("refusals", sa.Integer, nullable=False),
        sa.Column("latencies", sa.Text, nullable=False),
    )
    op.create_table(
        "audit_entries",
        sa.Column("entry_id", sa.String(64), primary_key=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("resource", sa.String(256), nullable=False, index=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
    )
    op.create_table("unsent_entries", sa.Column("entry_id", sa.String(64), primary_key=True))
    if op.get_bind().dialect.name == "sqlite":
        for change in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER audit_entries_no_{change} BEFORE {change.upper()} ON audit_entries "
                f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
            )
    else:
        op.execute(
            "CREATE FUNCTION refuse_audit_change() RETURNS trigger AS "
            f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$ LANGUAGE plpgsql"
        )
        op.execute(
            "CREATE TRIGGER audit_entries_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries "
            "EXECUTE FUNCTION refuse_audit_change()"
        )


def downgrade() -> None:
    for name in ("unsent_entries", "audit_entries", "rollout_counts", "rollout_calls", "rollouts"):
        op.drop_table(name)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION refuse_audit_change")
