"""Writes the documents that follow from the code: `python -m docs.generate`, with `--check` for drift.

`make docs` runs it. Plugins are left out: a document describes what Tidemill itself brings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from docs.generate.events import events_page
from docs.generate.kibana import kibana_files
from docs.generate.operators import augmenters_page, operators_page
from docs.generate.pipeline import AUGMENTERS, OPERATORS, pipeline_page, pipeline_schema
from docs.generate.variables import variables_table
from services.cleaning.engine.registry import own_augmenters, own_registry

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- variables: written by `make docs` -->", "<!-- end of variables -->"


def documents() -> dict[Path, str]:
    """The text of every generated file."""
    registry, augmenters = own_registry(), own_augmenters()
    operations = ROOT / "docs" / "operations.md"
    block = f"{BEGIN}\n{variables_table()}\n{END}"
    return {
        ROOT / "docs" / "operators.md": operators_page(registry),
        ROOT / "docs" / "augmenters.md": augmenters_page(augmenters),
        ROOT / "docs" / "pipeline.md": pipeline_page(),
        ROOT / "docs" / "events.md": events_page(),
        **{ROOT / "infra" / "kibana" / name: text for name, text in kibana_files().items()},
        ROOT / "pipelines" / "pipeline.schema.json": json.dumps(
            pipeline_schema({OPERATORS: registry, AUGMENTERS: augmenters}), indent=1, ensure_ascii=False
        )
        + "\n",
        operations: re.sub(
            f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, operations.read_text("utf-8"), flags=re.DOTALL
        ),
    }


def main() -> None:
    """Writes the documents, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a committed document differs")
    check = parser.parse_args().check
    texts = documents()
    drift = [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
    if check:
        if drift:
            names = "\n  ".join(str(path.relative_to(ROOT)) for path in drift)
            sys.exit(f"Documents drift from the code, run `make docs`:\n  {names}")
        return
    for path in drift:
        path.write_text(texts[path], "utf-8")


if __name__ == "__main__":
    main()
