"""Checks every connection that a person's request causes: the checked address is exactly the one that is connected to.

A host is resolved once per connection. aiohttp opens its sockets by `socket_factory`, which receives the very address
that the socket is about to connect to, whether resolved or literal. The check happens there, so neither a name that
changes its address (DNS rebinding) nor a redirect nor an unusual spelling of 127.0.0.1 gets past it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from aiohttp import abc
from aiohttp.abc import ResolveResult

from services.kit.network_rules import NetworkRules

logger = logging.getLogger(__name__)

AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]
LookUp = Callable[[str, int], Sequence[AddressInfo]]


class AddressRefusedError(OSError):
    """Raised for a connection to an address that must not be connected to."""


def system_look_up(host: str, port: int) -> Sequence[AddressInfo]:
    """Addresses of a host, as this machine resolves it."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class NetworkWall:
    """Checks the connections to one source or judge. Make one for each: it remembers how allowed hosts resolved."""

    def __init__(
        self,
        rules: NetworkRules,
        look_up: LookUp,
        threads: Executor | None,
        own_endpoint: tuple[str, int] | None = None,
    ) -> None:
        """Opens no connection.

        Args:
            rules: what is allowed.
            look_up: resolves host and port to addresses; blocks.
            threads: where `look_up` runs; the loop's own when None.
            own_endpoint: host and port of the operator's own store, allowed as if they were listed.
        """
        self._rules = rules
        self._look_up = look_up
        self._threads = threads
        self._own = own_endpoint
        self._named: set[tuple[str, int]] = set()
        self.refused = False
        """Whether a connection was refused; aiohttp may report it like any other failure to connect."""

    def resolver(self) -> abc.AbstractResolver:
        """For aiohttp's connector."""
        return _Resolver(self._resolve)

    def socket(self, info: AddressInfo) -> socket.socket:
        """A socket for this address, for aiohttp's connector.

        Raises:
            AddressRefusedError: it must not be connected to.
        """
        family, kind, protocol, _, target = info
        address, port = str(target[0]), int(target[1])
        host_named = (address, port) in self._named or self._is_named(address, port)
        if family not in (socket.AF_INET, socket.AF_INET6) or not self._rules.permits(address, port, named=host_named):
            self.refused = True
            # To the log, not to the caller: internal addresses are not the caller's business.
            logger.warning("refused a connection to %s port %d", address, port)
            raise AddressRefusedError("the address is not allowed")
        return socket.socket(family, kind, protocol)

    def _is_named(self, host: str, port: int) -> bool:
        if (
            self._own is not None
            and port == self._own[1]
            and (host == self._own[0] or host.endswith("." + self._own[0]))
        ):
            return True
        return self._rules.names(host, port)

    async def _resolve(self, host: str, port: int) -> list[ResolveResult]:
        infos = await asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host, port)
        found = []
        for family, _, protocol, _, target in infos:
            address = str(target[0])
            if self._is_named(host.rstrip(".").lower(), port):
                self._named.add((address, port))
            found.append(
                ResolveResult(
                    hostname=host, host=address, port=port, family=family, proto=protocol, flags=socket.AI_NUMERICHOST
                )
            )
        if not found:
            raise OSError(f"the host {host} has no address")
        return found


class _Resolver(abc.AbstractResolver):
    def __init__(self, resolve: Callable[[str, int], Any]) -> None:
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found: list[ResolveResult] = await self._resolve(host, port)
        return found

    async def close(self) -> None:
        """Nothing to close."""
