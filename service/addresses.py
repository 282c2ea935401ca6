"""Types of settings that hold addresses: where to listen, host names, origins of web pages, proxies, a path prefix.

Guarantees: a value is normalized (lower case, no brackets, no final dot or slash) or rejected with ValueError.
Out of scope: resolving names.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.[A-Za-z0-9_-])*\.?")
_ROOT_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*")


def is_ip_address(host: str) -> bool:
    """Return whether `host` is an IP address: IPv4, or IPv6 with or without brackets."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _parse_address(value: object) -> object:
    """Return an IP address without brackets, or a host name without its final dot."""
    if not isinstance(value, str):
        return value
    host = value.strip()
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        # Only a link-local address needs its scope (fe80::1%eth0). The system rejects others with one, such as ::1%lo.
        return str(address) if address.is_link_local else str(address).partition("%")[0]
    if not _HOST_NAME.fullmatch(host):
        raise ValueError("not an address")
    return host.lower().removesuffix(".")


def _parse_root_path(value: object) -> object:
    """Return a path prefix without a slash at the end."""
    path = value.rstrip("/") if isinstance(value, str) else ""
    if not _ROOT_PATH.fullmatch(path):
        raise ValueError("not a path")
    return path


def _parse_base_url(value: object) -> object:
    """Return an http or https URL without a slash at the end, and without user, query and fragment."""
    text = value.strip().rstrip("/") if isinstance(value, str) else ""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("not a URL")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("more than an address")
    return text


def _split(value: object) -> object:
    """Split text at commas, in lower case; return a value that is not text unchanged."""
    return tuple(filter(None, (part.strip().lower() for part in value.split(",")))) if isinstance(value, str) else value


def _parse_proxies(value: object) -> object:
    """Return addresses and networks; `*` alone for all, and nothing for `none`."""
    entries = _split(value)
    if not isinstance(entries, tuple) or entries in (("*",), ()):
        return entries
    if entries == ("none",):
        return ()
    networks = (ipaddress.ip_network(entry.removeprefix("[").removesuffix("]"), strict=False) for entry in entries)
    return tuple(
        str(network.network_address if network.prefixlen == network.max_prefixlen else network) for network in networks
    )


Address = Annotated[str, BeforeValidator(_parse_address)]
BaseUrl = Annotated[str, BeforeValidator(_parse_base_url)]
RootPath = Annotated[str, BeforeValidator(_parse_root_path)]
_HostPattern = Annotated[str, Field(pattern=rf"^(\*|(\*\.)?{_HOST_NAME.pattern}|\[[0-9a-f:.]+\])$")]
_Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+)$")]
HostPatterns = Annotated[tuple[_HostPattern, ...], NoDecode, BeforeValidator(_split)]
Origins = Annotated[tuple[_Origin, ...], NoDecode, BeforeValidator(_split)]
TrustedProxies = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_proxies)]
