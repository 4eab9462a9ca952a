"""Checks a mesh that does not work, says what is wrong and what to do, and repairs what is safe to repair.

`findings` says what a finding is, `mesh` looks at the machine and at what runs, `stores` knows where databases and
artefacts are, `databases` and `stored` look at them.
"""

from __future__ import annotations
