"""Forms that pages send: bounded, and only from pages of this console."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request

from gateway.http.body import LEASE_KEY
from gateway.http.limits import BodyLease
from services.kit.errors import InvalidArgumentError, PermissionDeniedError

TOKEN = "form_token"  # noqa: S105 - the name of a field
MAX_BYTES = 1024 * 1024
"""Of a form: a correction of 64 KiB, each byte as three characters, with room."""
MAX_FIELDS = 32


async def read_form(request: Request, limit: int = MAX_BYTES) -> Mapping[str, str]:
    """The fields of a form, the last of each name.

    Raises:
        InvalidArgumentError: it is larger than `limit` bytes, or not a form.
        UnavailableError: other requests' bodies use the memory that it needs.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InvalidArgumentError("The console takes forms only.", reason="NOT_A_FORM")
    lease: BodyLease = request.scope[LEASE_KEY]
    body = b""
    async for piece in request.stream():
        body += piece
        lease.hold(min(len(body), limit))
        if len(body) > limit:
            raise InvalidArgumentError(f"The form is larger than {limit} bytes.", reason="BODY_TOO_LARGE")
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidArgumentError("The form cannot be read.", reason="NOT_A_FORM") from error
    # Browsers end lines with CR LF in forms.
    return {name: values[-1].replace("\r\n", "\n") for name, values in fields.items()}


def refuse_foreign(request: Request) -> None:
    """Refuses what a page of another origin sends; browsers name the origin, and no page can change that.

    Raises:
        PermissionDeniedError: it comes from another origin.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    foreign = site is not None and site not in ("same-origin", "none")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        foreign = True
    if foreign:
        raise PermissionDeniedError("This form was sent by a page of another origin.", reason="FOREIGN_FORM")
