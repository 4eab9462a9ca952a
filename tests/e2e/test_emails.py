"""`pipelines/emails.yaml`: raw mail in, a data set without addresses, headers and quotes out."""

from __future__ import annotations

import re

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import ROOT, Mesh

PIPELINE = str(ROOT / "pipelines" / "emails.yaml")
ADDRESS = re.compile(r"[\w.+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}")


@pytest.mark.slow
def test_raw_mail_becomes_a_data_set(mesh: Mesh) -> None:
    mesh.tidemill("run", PIPELINE, "--check")
    version = mesh.json("dataset", "build", PIPELINE)
    assert (version["state"], version["records_in"]) == ("STATE_READY", "6045")
    rejected = version["rejected_by_reason"]
    assert {"exact_duplicate", "near_duplicate", "conflicting_labels", "too_short"} <= set(rejected)
    folder = version["uri"].removeprefix("file://")
    for part in ("train", "holdout"):
        rows = pq.read_table(f"{folder}/{part}.parquet").to_pydict()
        assert set(rows["label"]) == {"ham", "spam"}
        assert "from" not in rows, "who wrote it is not learnt"
        # A message's id, and an address with ornaments joined to it.
        assert sum(ADDRESS.search(text) is not None for text in rows["text"]) <= 2
