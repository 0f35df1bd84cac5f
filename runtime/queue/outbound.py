"""Outbound: which URLs that callers name are called back, from where on the network, and signed by what.

Imports the floor only. A URL comes from somebody who may not reach what this machine reaches: other machines
of its network, the cloud's metadata, the node itself. So its host is resolved here, every address of it must
be public, and the connection goes to that address and to no later answer of the name server.
"""

import ipaddress
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import msgspec

from headrace.runtime.errors import InvalidCallback
from headrace.runtime.model.destination import check_webhook

URL_CHARS_MAX = 2048

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Callbacks(msgspec.Struct, frozen=True):
    """What the node's settings say of callbacks: the secret that signs them (`whsec_…`), and the hosts
    (`hooks.example`, `*.example`) that may be called although they are not public, by http too; of networks
    (`10.1.0.0/16`) by https only.
    """

    secret: str
    hosts: tuple[str, ...] = ()

    def check(self, url: str) -> None:
        """Refuse a URL that its form tells is not called back. Raises InvalidCallback, without the URL."""
        if len(url) > URL_CHARS_MAX:
            raise InvalidCallback(f"it is longer than {URL_CHARS_MAX:,} characters")
        try:
            parts = urlsplit(url)
            check_webhook(url)
        except ValueError as error:
            raise InvalidCallback(str(error).replace("a webhook's URL", "it")) from None
        if not url.isascii():
            raise InvalidCallback("it is not ASCII; percent-encode it")
        if parts.username is not None or parts.password is not None:
            raise InvalidCallback("it holds a user name")
        host = parts.hostname or ""
        named = self._named(host)
        if parts.scheme.lower() != "https" and not (parts.scheme.lower() == "http" and named):
            raise InvalidCallback("it is not an https:// URL")
        address = _literal(host)
        if address is not None:
            self._check_address(address, named=named)
        elif not named and (host == "localhost" or host.endswith((".localhost", ".local", ".internal"))):
            raise InvalidCallback("its host is not public")

    def resolve(self, host: str, port: int) -> str:
        """An address of the host that may be called. Blocks. Raises InvalidCallback when any of its addresses
        may not be, and OSError when the name is not known.
        """
        named = self._named(host)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
        for text in addresses:
            self._check_address(ipaddress.ip_address(text), named=named)
        return addresses[0]

    def _named(self, host: str) -> bool:
        host = host.lower().rstrip(".")
        return any(
            host == known or (known.startswith("*.") and host.endswith(known[1:]))
            for known in (item.lower() for item in self.hosts)
        )

    def _check_address(self, address: Address, *, named: bool) -> None:
        if named or any(address in network for network in _networks(self.hosts, address.version)):
            return
        if not all(one.is_global and not one.is_multicast and not one.is_reserved for one in _meant(address)):
            raise InvalidCallback("its host is not public")


def _literal(host: str) -> Address | None:
    """The address that a host's name is, in whichever way the system reads it (`127.1`, `2130706433`)."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _meant(address: Address) -> Iterable[Address]:
    """The address, and those that it stands for."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            yield address.ipv4_mapped
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield from address.teredo
        if address in _NAT64:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _networks(hosts: Iterable[str], version: int) -> Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for item in hosts:
        try:
            network = ipaddress.ip_network(item, strict=False)
        except ValueError:  # a host's name
            continue
        if network.version == version:
            yield network


def signed_headers(secret: str, id: str, body: bytes, *, second: int) -> dict[str, str]:
    """The headers of Standard Webhooks 1.0 that sign a body: what receivers verify with the same secret."""
    from standardwebhooks.webhooks import Webhook

    moment = datetime.fromtimestamp(second, UTC)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(second),
        "webhook-signature": Webhook(secret).sign(id, moment, body.decode()),
    }
