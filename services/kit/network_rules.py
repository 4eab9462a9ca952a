"""The network addresses that a request may make a service connect to: public ones, and what the operator allowed.

A host name is judged by the address it resolves to when connecting, never by its text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

_USUAL_PORTS = (80, 443)
_ANY_PORT = 0
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
# A public address that the machine's own host answers: Azure's wire server.
_METADATA = (ip_network("168.63.129.16/32"), ip_network("fd00:ec2::/32"))
# Prefixes that embed IPv4 in IPv6: the IPv4 address is in the last 32 bits (RFC 6052; RFC 4291, deprecated form).
_TRANSLATED = (ip_network("64:ff9b::/96"), ip_network("::/96"))
# RFC 8215's local translation; site-local addresses, which old kernels still route; and what some Pythons count as
# global: protocol assignments (Oracle's metadata among them), 6to4 relays.
_NEVER_PUBLIC = tuple(map(ip_network, ("64:ff9b:1::/48", "fec0::/10", "192.0.0.0/24", "192.88.99.0/24")))


@dataclass(frozen=True, slots=True)
class _Rule:
    """An allowed host or network, and its port: 0 for any, None for the default ports."""

    host: str
    network: _Network | None
    port: int | None

    def takes(self, port: int) -> bool:
        return port in _USUAL_PORTS if self.port is None else self.port in (_ANY_PORT, port)


class NetworkRules:
    """What an operator's list allows in addition to public addresses at the ports 80 and 443.

    For sources it is `TIDEMILL_SOURCE_HOSTS`. For models that are asked, `TIDEMILL_JUDGE_HOSTS` and
    `TIDEMILL_AUGMENT_HOSTS`, nothing is allowed that is not listed.
    """

    def __init__(self, entries: Sequence[str] = ()) -> None:
        """Accepts `host`, `host:port`, `10.0.0.0/8:9000`, `[fd12::1]:8080`, `[fd12::/16]`; the port `*` means any.

        Raises:
            ValueError: an entry has none of these forms.
        """
        self._rules = [_rule(entry) for entry in entries]

    def names(self, host: str, port: int) -> bool:
        """Whether the operator allowed this host with this port."""
        return any(rule.host == host and rule.takes(port) for rule in self._rules if rule.host)

    def lists(self, host: str, port: int) -> bool:
        """Whether the operator allowed this host, or this literal address, with this port."""
        host = host.rstrip(".").lower()
        try:
            return self._has_network(ip_address(host), port)
        except ValueError:
            return self.names(host, port)

    def permits(self, address: str, port: int, *, named: bool = False) -> bool:
        """Whether a connection to this address may be opened.

        Args:
            address: an IP address, with or without a scope.
            port: the port.
            named: whether its host was allowed with this port. That permits private and loopback addresses; link-local
                and metadata addresses are permitted only if they are listed themselves.
        """
        given = ip_address(address.partition("%")[0])
        embedded = _embedded(given)
        meanings = [given, *embedded]
        if self._has_network(given, port) or (embedded and all(self._has_network(one, port) for one in embedded)):
            return True
        if any(_is_never_a_source(meaning) for meaning in meanings):
            return False
        return named or (port in _USUAL_PORTS and all(_is_public(meaning) for meaning in meanings))

    def _has_network(self, address: _Address, port: int) -> bool:
        return any(
            rule.network is not None
            and rule.network.version == address.version
            and address in rule.network
            and rule.takes(port)
            for rule in self._rules
        )


def _rule(entry: str) -> _Rule:
    text = entry.strip().lower()
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\*|[0-9]{1,5}))?", text)
    if bracketed:
        where, port = bracketed.groups()
    else:
        where, _, port = text.partition(":")
        if ":" in port:
            raise ValueError(f"{entry!r}: write an IPv6 address in brackets, such as [fd12::1]:8080")
    number = None if not port else _ANY_PORT if port == "*" else int(port) if port.isdecimal() else -1
    if (number is not None and not 0 <= number <= 65535) or (port and port.isdecimal() and number == 0):
        raise ValueError(f"{entry!r}: a port is a number from 1 to 65535, or *")
    try:
        return _Rule("", ip_network(where), number)
    except ValueError as error:
        if bracketed or "/" in where or not _HOST.fullmatch(where):
            raise ValueError(f"{entry!r} is not a host, an address or a network ({error})") from error
    return _Rule(where, None, number)


def _embedded(address: _Address) -> list[_Address]:
    """IPv4 addresses that an IPv6 address leads to by translation or tunnelling."""
    if isinstance(address, IPv4Address):
        return []
    found: list[_Address] = []
    if address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    if any(address in network for network in _TRANSLATED) and int(address) > 1:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return found


def _is_never_a_source(address: _Address) -> bool:
    """Addresses that never belong to a server with a host name."""
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or any(address.version == network.version and address in network for network in _METADATA)
    )


def _is_public(address: _Address) -> bool:
    if any(address.version == network.version and address in network for network in _NEVER_PUBLIC):
        return False
    if isinstance(address, IPv6Address) and _embedded(address):
        # The translated address decides; the prefix itself is not always counted as global.
        return True
    return address.is_global and not address.is_reserved


def is_this_machine(url: str) -> bool:
    """Whether a URL's host is the loopback of this machine by its text, so that nothing sent there leaves it.

    Raises:
        ValueError: it is not a URL.
    """
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
