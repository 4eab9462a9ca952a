"""Checks a mesh that does not work, says what is wrong and what to do, and repairs what is safe to repair.

`findings` says what a finding is, `mesh` looks at the machine and at what runs, `stored` at databases and artefacts.
"""

from __future__ import annotations
