"""Calls to models over HTTP, behind a wall of the addresses that the operator listed for them.

Unlike a source's, no host is allowed unless it is listed, since a call carries texts and a key. Redirects are not
followed, and a response is read up to a limit. What is asked, and what a response means, is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from services.kit.errors import FailedPreconditionError, TidemillError, UnavailableError
from services.kit.network_rules import NetworkRules, is_this_machine
from services.kit.network_wall import NetworkWall, system_look_up

_MAX_RESPONSE_BYTES = 1 << 20
_CONNECT_S = 10.0
_LATER = (408, 429)
_SETTINGS = (401, 403, 404, 405)


class UnusableResponseError(Exception):
    """Raised for a response to one request that says nothing, such as a refusal of its text; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelAddress:
    """Where a model is asked: a URL without the path of the call, and the environment variable of its key, if any."""

    url: str
    key_env: str = ""


class ModelCalls:
    """Calls of one use; opens no connection until it is asked to. Thread-safe."""

    def __init__(
        self, rules: NetworkRules, secret: Callable[[str], str | None], *, use: str, service: str, hosts: str
    ) -> None:
        """Says who calls, for errors.

        Args:
            rules: the hosts that are listed.
            secret: an environment variable.
            use: the beginning of errors' reasons: `JUDGE` gives `JUDGE_UNAVAILABLE`.
            service: whose environment holds the keys.
            hosts: the environment variable that lists the hosts.
        """
        self._rules, self._secret = rules, secret
        self._use, self._service, self._hosts = use, service, hosts

    def refused(self, address: ModelAddress) -> str:
        """Why an address is not asked; empty if it is."""
        try:
            parts = urlsplit(address.url)
            port = parts.port or {"https": 443}.get(parts.scheme, 80)
        except ValueError as error:
            return f"is not a URL: {error}"
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or not host:
            return "must be a URL that begins with http:// or https://"
        if parts.username is not None or parts.password is not None:
            return "must hold no password; name the environment variable of a key as key_env"
        if parts.query or parts.fragment:
            return "must end with its path"
        if not self._rules.lists(host, port):
            return f"{host}:{port} is not in {self._hosts} of the {self._service} service, so no text is sent there"
        if address.key_env and parts.scheme == "http" and not is_this_machine(address.url):
            return "must be https: a key is not sent in the clear to another machine"
        return ""

    async def post(self, address: ModelAddress, path: str, body: Mapping[str, Any], timeout_s: float) -> Any:
        """The JSON of the response to a request.

        Raises:
            UnusableResponseError: this request is refused, or the response is too large or not JSON.
            UnavailableError: the server is unavailable or slow.
            FailedPreconditionError: an operator has to change something.
        """
        # Again at each call: the operator may have taken the host off the list.
        if why := self.refused(address):
            raise FailedPreconditionError(f"Its address {why}.", reason=f"{self._use}_ADDRESS")
        headers = {"Accept-Encoding": "identity"}
        if address.key_env:
            key = self._secret(address.key_env)
            if not key:
                what = f"{address.key_env} is not set for the {self._service} service; set it and restart the service."
                raise FailedPreconditionError(what, reason=f"{self._use}_KEY")
            headers["Authorization"] = f"Bearer {key}"
        wall = NetworkWall(self._rules, system_look_up, None)
        connector = aiohttp.TCPConnector(
            resolver=wall.resolver(), socket_factory=wall.socket, use_dns_cache=False, force_close=True
        )
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, _CONNECT_S))
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=timeout,
                    # Without the proxy and the passwords in this process's environment.
                    trust_env=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                ) as session,
                session.post(
                    address.url.rstrip("/") + path, json=body, headers=headers, allow_redirects=False
                ) as response,
            ):
                content = await _read(response)
                if response.status != 200:
                    raise self._refusal(response.status, response.headers.get("Retry-After", ""))
        except TimeoutError as error:
            what = f"It did not answer within {timeout_s:g} s."
            raise UnavailableError(what, reason=f"{self._use}_SLOW") from error
        except (aiohttp.ClientError, OSError) as error:
            if wall.refused:
                what = f"Its host leads to an address that {self._hosts} does not allow."
                raise FailedPreconditionError(what, reason=f"{self._use}_ADDRESS") from error
            # The message of an error may hold the address, never the key.
            raise UnavailableError(
                f"Its address cannot be reached ({type(error).__name__}); check that the server runs.",
                reason=f"{self._use}_UNAVAILABLE",
            ) from error
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UnusableResponseError("Its response is not JSON.") from error

    def _refusal(self, status: int, retry_after: str) -> TidemillError | UnusableResponseError:
        """What a status means: the server is unavailable, someone must act, or it does not take this request."""
        if status >= 500 or status in _LATER:
            wait = float(retry_after) if retry_after.isdecimal() else None
            what = f"It answers with status {status}."
            return UnavailableError(what, reason=f"{self._use}_UNAVAILABLE", retry_after_s=wait)
        if status in _SETTINGS or status < 400:
            what = f"It answers with status {status}: look at its address, model and key."
            return FailedPreconditionError(what, reason=f"{self._use}_REFUSES")
        return UnusableResponseError(f"It refuses this text with status {status}.")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(65_536):
        content += chunk
        if len(content) > _MAX_RESPONSE_BYTES:
            raise UnusableResponseError(f"Its response has more than {_MAX_RESPONSE_BYTES} bytes.")
    return bytes(content)
