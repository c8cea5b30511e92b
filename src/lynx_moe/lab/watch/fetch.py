"""A text over HTTP, by the proxy of the environment where the address is not of this machine."""

import ipaddress
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit


def base_of(url: str) -> str:
    """A server's address without a path: HTTP where nothing is said."""
    return (url if "://" in url else f"http://{url}").rstrip("/")


def opening(request: urllib.request.Request, timeout: float) -> Any:
    """An answer, to be read while it comes: by no proxy on this machine. Raises OSError, HTTPError among them, and
    ValueError."""
    local = is_local(request.full_url)
    opener = urllib.request.build_opener(*[urllib.request.ProxyHandler({})] if local else [])
    return opener.open(request, timeout=timeout)


def read(request: urllib.request.Request, timeout: float) -> str:
    """The text of an answer. Raises as `opening` does."""
    with opening(request, timeout) as answer:
        text: str = answer.read().decode()
    return text


def fetch(address: str, timeout: float) -> str:
    """What is at an address. Raises ValueError where it cannot be read."""
    proxied = not is_local(address) and _proxy(address)
    way = ", by the proxy of the environment (no_proxy names who needs none)" if proxied else ""
    try:
        return read(urllib.request.Request(address), timeout)
    except HTTPError as error:
        raise ValueError(
            f"{address} answers {error.code} {error.reason}{way}; is it the address of a vLLM server?"
        ) from None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise ValueError(
            f"{address} cannot be read ({reason}){way}; is the server up, and the address right?"
        ) from None


def is_local(address: str) -> bool:
    """Whether it names this machine: a proxy elsewhere would not find there what is meant."""
    try:
        host = (urlsplit(address).hostname or "").rstrip(".")
        if host == "localhost" or host.endswith(".localhost"):
            return True
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified


def _proxy(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")
