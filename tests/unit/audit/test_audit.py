"""The dependency audit finds what is listed, and the lock has none of it."""

from __future__ import annotations

from pathlib import Path

from infra.audit.__main__ import findings, main, read_advisories, read_lock

_LIST = """
[[advisory]]
ids = ["CVE-1"]
package = "Some_Package"
affected = "<2.0"
[[advisory]]
ids = ["CVE-2"]
package = "other"
affected = ">=1,<1.5"
"""


def test_an_affected_version_is_found() -> None:
    locked = read_lock("some-package==1.9.9 ; python_version < '3.14' \\\n    --hash=sha256:0\nother==1.5\n")
    assert locked == {"some-package": "1.9.9", "other": "1.5"}
    assert [(each.ids, version) for each, version in findings(locked, read_advisories(_LIST))] == [
        (("CVE-1",), "1.9.9")
    ]


def test_every_listed_package_is_locked_so_that_no_name_is_misspelt() -> None:
    root = Path(__file__).parents[3]
    locked = read_lock((root / "requirements.lock").read_text())
    listed = read_advisories((root / "infra" / "audit" / "advisories.toml").read_text())
    assert {each.package for each in listed} <= locked.keys()


def test_the_lock_has_no_open_hole() -> None:
    assert main() == 0
