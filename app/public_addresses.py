"""Which numeric addresses belong to the open internet, and which addresses a name has.

The list is our own, because `ipaddress.is_global` holds for multicast and for tunnels that lead back inside.
"""

import ipaddress
import socket
import threading
import time

from app.errors import TransferFailed

_CLOSED_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's own agent, on an address that looks public
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
_OPEN_IPV6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID and other protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4 carries an IPv4 address
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
RESOLVING_AT_ONCE = 32
_RESOLVING = threading.BoundedSemaphore(RESOLVING_AT_ONCE)
UNKNOWN_HOST = "unknown_host"
_DEFINITE = frozenset(getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name))
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


def is_public(address: str) -> bool:
    """Whether this numeric address is one of the open internet: unicast, global, not translated or tunnelled."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _CLOSED_IPV4)
    if parsed.scope_id is not None or parsed not in _OPEN_IPV6:
        return False
    if any(parsed in network for network in _CLOSED_IPV6):
        return False
    return (int(parsed) >> 32) & 0xFFFFFFFF not in _ISATAP


def resolve(host: str, port: int, until: float) -> list[str]:
    """The numeric addresses of a host in the resolver's order; `TransferFailed` where it has none in time.

    Its detail `reason` is `UNKNOWN_HOST` where the resolver knows that there is no such host.
    """
    found: list[str] = []
    refusals: list[Exception] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            refusals.append(error)
            return
        finally:
            _RESOLVING.release()
        found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

    # getaddrinfo knows no timeout: its thread outlives the caller and ends with the resolver's own patience. Whoever
    # names slow hosts without end must not gather threads without end, so they are counted.
    if not _RESOLVING.acquire(timeout=max(0.0, until - time.monotonic())):
        raise TransferFailed("Too many names are being resolved; try again.")
    thread = threading.Thread(target=ask, daemon=True, name="resolve")
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    addresses = list(found)
    for refusal in refusals:
        if isinstance(refusal, UnicodeError) or refusal.errno in _DEFINITE:
            raise TransferFailed("There is no host of this name.", reason=UNKNOWN_HOST)
    if not addresses:
        raise TransferFailed("The host's name cannot be resolved.")
    return addresses
