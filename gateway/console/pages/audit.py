"""The audit trail: who decided what, and why."""

from __future__ import annotations

from starlette.responses import Response
from tidemill.pipeline.v1.rollout_service_pb2 import ListAuditEntriesRequest

from gateway.console.view import Page, View


async def audit(view: View) -> Response:
    """The page."""
    resource = view.query("resource").strip()
    request = ListAuditEntriesRequest(resource=resource, page_size=50, page_token=view.next_token)
    found = await view.services.rollouts.ListAuditEntries(request)
    return view.page(
        "audit.html",
        entries=found.entries,
        resource=resource,
        older=found.next_page_token,
        after=view.next_token,
    )


PAGES = (Page("GET", "/audit", audit),)
