"""Requests to addresses that somebody else has named: to the public internet, and to hosts that are allowed.

Guards against server-side request forgery (CWE-918). A name is resolved once, every address that it has is
judged, and the connection goes to exactly such an address: a name that means something else a moment later
changes nothing. TLS is verified against the name. Neither proxies of the environment nor redirects are
followed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name, best first. Raises OSError."""

LONGEST_URL = 2000
RESOLVED_S = 5.0
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_PLAIN = re.compile(r"[!-\[\]-~]+")
"""Printable ASCII without space and backslash, which parsers disagree on."""


def _networks(*names: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, names))


PUBLIC = _networks("0.0.0.0/0", "2000::/3")
SPECIAL = _networks(
    # IPv4: RFC 6890 and the IANA registry
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    "168.63.129.16/32",  # a cloud's own service behind an address that looks public
    # IPv6: Teredo and others, documentation, 6to4
    *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
)
PRIVATE = _networks(
    *("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
)
"""Where a host that is allowed by its name may be."""


class OutsideError(Exception):
    """The service does not connect there. `str(error)` names the cause and the cure."""


class Malformed(OutsideError):
    """No address that anything is sent to, wherever it were."""


class Refused(OutsideError):
    """An address that must not be reached from here."""


class Unresolved(OutsideError):
    """The name has no address now."""


@dataclass(frozen=True)
class Allowed:
    """Hosts by name, and networks, that may be reached though they are not public, also by plain HTTP."""

    names: frozenset[str]
    networks: tuple[Network, ...]

    @classmethod
    def of(cls, entries: Iterable[str]) -> Allowed:
        """From `pacs.hospital.example`, `10.1.0.0/16` or `10.1.2.3`. Raises ValueError."""
        names, networks = set(), []
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                name = entry.lower().removesuffix(".")
                if not _NAME.fullmatch(name) or _is_number(name):
                    raise ValueError(f"neither a host name nor a network: {entry!r}") from None
                names.add(name)
        return cls(frozenset(names), tuple(networks))

    def lists(self, address: Address) -> bool:
        """Whether an address is in a listed network."""
        return _within(address, self.networks)


@dataclass(frozen=True)
class Destination:
    """A host by its name or number, with the addresses that may be connected to."""

    host: str
    addresses: tuple[Address, ...]


class Guard:
    """Says where the service may connect to."""

    def __init__(self, allowed: Iterable[str] = (), *, resolve: Resolve | None = None) -> None:
        self._allowed = Allowed.of(allowed)
        self._resolve = resolve or resolved

    async def admit(self, url: str | httpx.URL) -> Destination:
        """Where a URL leads to, as judged now. Raises Malformed, Refused or Unresolved."""
        parsed = parse(url)
        host = _host(parsed)
        addresses = await self._addresses(host, parsed)
        for address in addresses:
            self._judge(parsed, host, address)
        return Destination(host, tuple(addresses))

    async def _addresses(self, host: str, url: httpx.URL) -> list[Address]:
        literal = _literal(host)
        if literal is not None:
            return [literal]
        try:
            async with asyncio.timeout(RESOLVED_S):
                found = await self._resolve(host, url.port or 443)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise Unresolved(f"the name {host!r} has no address now: correct it, or try again") from error
        if not found:
            raise Unresolved(f"the name {host!r} has no address now: correct it, or try again")
        return [ip_address(address) for address in found]

    def _judge(self, url: httpx.URL, host: str, address: Address) -> None:
        """Raise Refused for an address that must not be reached, or not so."""
        named = host in self._allowed.names
        listed = self._allowed.lists(address) or (named and (_is_public(address) or _is_private(address)))
        if not (listed or _is_public(address)):
            raise Refused(
                f"{host!r} is not at a public address; an operator may allow the host, or its network "
                "(TOMOTRAIN_WEBHOOK_HOSTS)"
            )
        if url.scheme != "https" and not listed:
            raise Refused(f"{host!r} is reached by https only; an operator may allow http for it")


def parse(url: str | httpx.URL) -> httpx.URL:
    """The URL, if there is but one way to read it. Raises Malformed."""
    text = str(url)
    if len(text) > LONGEST_URL or not _PLAIN.fullmatch(text):
        raise Malformed(f"a URL has up to {LONGEST_URL} printable ASCII characters, no space, no backslash")
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise Malformed(f"no URL: {error}") from error
    if parsed.scheme not in ("https", "http"):
        raise Malformed("the URL must begin with https://")
    if "@" in text.partition("://")[2].partition("/")[0] or parsed.userinfo:
        raise Malformed("a URL with a user name or password is not taken")
    if parsed.fragment or "#" in text:
        raise Malformed("a URL with a fragment is not taken")
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        raise Malformed("a port is between 1 and 65535")
    return parsed


def _host(url: httpx.URL) -> str:
    """The host in its one form. Raises Malformed for others, such as numbers that are no dotted quad."""
    host = url.host.lower().removesuffix(".")
    if _literal(host) is not None:
        return host
    if not _NAME.fullmatch(host) or len(host) > 253 or _is_number(host):
        raise Malformed(f"{url.host!r} is neither a host name nor an IP address in its usual form")
    return host


def _is_number(host: str) -> bool:
    """Whether resolvers may read it as an IPv4 address: by its last label (WHATWG URL, 3.5)."""
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _literal(host: str) -> Address | None:
    if "%" in host:
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _is_public(address: Address) -> bool:
    return _within(address, PUBLIC) and not _within(address, SPECIAL)


def _is_private(address: Address) -> bool:
    return _within(address, PRIVATE)


async def resolved(host: str, port: int) -> list[str]:
    """What the system's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Pinned(httpx.AsyncBaseTransport):
    """Sends each request to an address that the guard has admitted for it, over a connection of its own."""

    def __init__(self, guard: Guard, *, verify: ssl.SSLContext | None = None) -> None:
        self._guard = guard
        self._inner = httpx.AsyncHTTPTransport(
            verify=verify or httpx.create_ssl_context(),
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send to the first admitted address that takes the connection. Raises OutsideError."""
        destination = await self._guard.admit(request.url)
        for address in destination.addresses[:-1]:
            try:
                return await self._inner.handle_async_request(_to(address, destination, request))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._inner.handle_async_request(_to(destination.addresses[-1], destination, request))

    async def aclose(self) -> None:
        """Close what is open."""
        await self._inner.aclose()


def _to(address: Address, destination: Destination, request: httpx.Request) -> httpx.Request:
    """The same request to an address, under the name that was asked for (`Host`, and TLS's server name)."""
    extensions: dict[str, Any] = {**request.extensions}
    if _literal(destination.host) is None:
        extensions["sni_hostname"] = destination.host
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions=extensions,
    )


def outside_client(
    guard: Guard, *, timeout_s: float = 10.0, verify: ssl.SSLContext | None = None
) -> httpx.AsyncClient:
    """A client that goes nowhere else. Its requests raise OutsideError beside httpx's own errors."""
    return httpx.AsyncClient(
        transport=Pinned(guard, verify=verify), timeout=timeout_s, follow_redirects=False, trust_env=False
    )
