"""Notifies people of decisions: in the log, by a webhook, and by mail."""

from __future__ import annotations

import logging
import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path

import httpx

from services.kit.errors import UnavailableError
from services.pipeline.app.rollout_ports import Notifier
from services.pipeline.domain.audit import AuditEntry

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0


class LogNotifier:
    """Implements `Notifier` of `services.pipeline.app.rollout_ports`: a line in the log."""

    def send(self, entry: AuditEntry) -> None:
        """See the port."""
        logger.warning("%s by %s on %s: %s", entry.action, entry.actor, entry.resource, entry.reason)


class WebhookNotifier:
    """Implements `Notifier`: a POST with the entry as JSON. A repeat has the same `name`."""

    def __init__(self, url: str) -> None:
        """`url` may hold a secret, and is never logged."""
        self._url = url

    def send(self, entry: AuditEntry) -> None:
        """See the port."""
        text = f"{entry.action} by {entry.actor} on {entry.resource}: {entry.reason}"
        body = {
            "text": text,
            "name": entry.name,
            "create_time": entry.create_time.isoformat(),
            "actor": entry.actor,
            "action": entry.action,
            "resource": entry.resource,
            "reason": entry.reason,
            "facts": dict(entry.facts),
        }
        try:
            response = httpx.post(self._url, json=body, timeout=_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"The webhook of TIDEMILL_NOTIFY_WEBHOOK does not answer: {type(error).__name__}.",
                reason="WEBHOOK_UNAVAILABLE",
            ) from error
        if response.status_code >= 300:  # a redirect is not followed: the address is to be the one that was set
            raise UnavailableError(
                f"The webhook of TIDEMILL_NOTIFY_WEBHOOK answered {response.status_code}.",
                reason="WEBHOOK_UNAVAILABLE",
            )


class MailNotifier:
    """Implements `Notifier`: a mail in plain text."""

    def __init__(
        self, server: str, sender: str, receivers: Sequence[str], user: str | None = None, password: Path | None = None
    ) -> None:
        """Args:
        server: host:port.
        sender: address.
        receivers: addresses.
        user: at the server; none when None.
        password: file with the user's.
        """
        self._host, _, port = server.rpartition(":")
        self._port = int(port)
        self._sender, self._receivers = sender, list(receivers)
        self._user, self._password = user, password

    def send(self, entry: AuditEntry) -> None:
        """See the port."""
        mail = EmailMessage()
        mail["From"], mail["To"] = self._sender, ", ".join(self._receivers)
        mail["Subject"] = f"Tidemill: {entry.action} on {entry.resource}"
        mail["Message-ID"] = f"<{entry.entry_id}@tidemill>"
        facts = "".join(f"{name}: {value}\n" for name, value in sorted(entry.facts.items()))
        mail.set_content(f"{entry.reason}\n\nby {entry.actor} at {entry.create_time.isoformat()}\n\n{facts}")
        try:
            with smtplib.SMTP(self._host, self._port, timeout=_TIMEOUT_S) as server:
                server.ehlo()
                if server.has_extn("starttls"):
                    server.starttls(context=ssl.create_default_context())
                    server.ehlo()
                elif self._user:
                    raise UnavailableError(
                        "The mail server of TIDEMILL_NOTIFY_SMTP offers no STARTTLS, so it is sent no password.",
                        reason="MAIL_UNAVAILABLE",
                    )
                if self._user and self._password is not None:
                    server.login(self._user, self._password.read_text(encoding="utf-8").strip())
                server.send_message(mail)
        except (OSError, smtplib.SMTPException) as error:
            raise UnavailableError(
                f"The mail server of TIDEMILL_NOTIFY_SMTP did not take a mail: {error}", reason="MAIL_UNAVAILABLE"
            ) from error


class Notifiers:
    """Implements `Notifier`: all of them, one after another."""

    def __init__(self, notifiers: Sequence[Notifier]) -> None:
        self._notifiers = notifiers

    def send(self, entry: AuditEntry) -> None:
        """See the port. What one cannot send now is sent by all of them again: a notice comes at least once."""
        for notifier in self._notifiers:
            notifier.send(entry)
