"""Whether a server could listen where it is told to: bound as vLLM binds, without keeping it."""

import ipaddress
import socket
from pathlib import Path
from typing import Any

LONGEST = 107  # bytes of a Unix socket's path on Linux


def check(args: Any) -> None:
    """Raises ValueError if the server that `args` (vLLM's own) ask for cannot listen: a port or socket file in use, or
    a host that is not this machine. A headless node listens to nobody."""
    if args.headless or args.api_server_count == 0:
        return
    if args.uds:
        check_file(args.uds)
        return
    servers = args.data_parallel_size_local or 1 if getattr(args, "data_parallel_multi_port_external_lb", False) else 1
    for port in range(args.port, args.port + servers):
        check_port(args.host or "", port)


def check_port(host: str, port: int) -> None:
    """Raises ValueError if nobody could listen on the port: somebody does, or the machine has no such port or host."""
    where = f"port {port}" + (f" of host {host!r}" if host else "")
    with socket.socket(_family(host), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{where} cannot be used ({reason}); choose another with --port or --host") from None


def check_file(path: str) -> None:
    """Raises ValueError if no server could make the Unix socket `path`."""
    advice = "choose another with --uds"
    if Path(path).exists():
        raise ValueError(f"socket {path} exists; {advice}, or remove it if no server listens there")
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"socket {path} lies in no folder that exists; {advice}")
    if len(path.encode()) > LONGEST:
        raise ValueError(f"socket {path} has a path of {len(path.encode())} bytes, at most {LONGEST} work; {advice}")


def _family(host: str) -> socket.AddressFamily:
    try:
        return socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return socket.AF_INET  # a name, or every address
