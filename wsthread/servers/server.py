"""What the library has to know of a WSGI server, in one class with an answer for each question."""

from __future__ import annotations

import math
import socket
from typing import Any

_READ_SIZE = 65536


class Server:
    """A WSGI server, as far as its sockets and its end go. One subclass per server, in a module of its own.

    How to add a server:

    1. Serve a view that looks through its ``environ``, and find the client's socket there. Often it is behind a few
       private attributes of ``wsgi.input``.
    2. Write ``servers/<name>.py`` with a subclass. :meth:`find_socket` is the only method that it needs. Go along
       attributes with ``getattr(..., None)``: they may be gone in the server's next version, and the request then
       has to get its 501 and no traceback. The caller checks that what you return is a socket.
    3. Send a frame in the same segment as the handshake. If it gets lost, the server had read it already: write
       :meth:`take_unread`. If there is no way to get at such bytes, leave it out; no browser sends any.
    4. Stop the server in each way that it has, with a connection open. If the client does not get a Close with 1001,
       or the process is killed before the client has answered, write :meth:`is_stopping` and :meth:`time_to_stop`.
    5. Look into the server's log. If the response on the dummy makes it complain, set :attr:`dummy_headers`.
    6. If it keeps connections alive and has a way to be told that there are no more requests on one, write
       :meth:`expect_no_more`. It may well be left out.
    7. Ask for the address without the headers of a handshake. If that is a 500 instead of a 426, the server holds
       applications to PEP 3333: set :attr:`takes_upgrade` to False.
    8. Add it to ``SERVERS`` in ``servers/__init__.py``, to ``SERVERS`` of ``tests/servers.py``, and write
       ``tests/test_servers_<name>.py``.

    One object is for all requests of a process, so it holds no state.

    Attributes:
        own_keys: how the names begin that the server adds to the environ for itself. A connection lives longer than
            its request and drops them, so that it does not keep the server's objects alive.
        dummy_headers: headers of the response that the server writes to its dummy. No client ever reads them.
        takes_upgrade: whether a response may have the header Upgrade, which a 426 has to have (RFC 9110 15.5.22). PEP
            3333 forbids it to applications, and some servers then answer with a 500.
    """

    own_keys: tuple[str, ...] = ()
    dummy_headers: tuple[tuple[str, str], ...] = ()
    takes_upgrade = True

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return what the server shows as the socket of a request; None when the request is not this server's.

        A server that is not written in Python may have a descriptor only, as an int. This changes nothing. It is called
        in the thread that serves the request, more than once.

        Raises:
            DetachError: the request is this server's, and for a reason of its own no socket can be had.
        """
        raise NotImplementedError

    def take_unread(self, environ: dict[str, Any]) -> bytes:
        """Take out and return the bytes behind the request's head that the server has read already.

        It is called once, in the thread that serves the request, when the server's file descriptor leads to the dummy
        already. So reading from the server's file gives what is buffered, and then ends without waiting.
        """
        return b""

    def expect_no_more(self, environ: dict[str, Any]) -> None:
        """Let the server close the dummy behind the response, where it would wait there for the next request.

        It would see soon that none comes; this only saves it the work. It is called once, behind :meth:`take_unread`.
        """

    def room(self) -> tuple[str, ...] | None:
        """Return what the processes have in common that serve one application together, such as their addresses.

        None when there is one process, or nobody can tell. Any thread may call it.
        """
        return None

    def processes(self) -> int:
        """Return how many processes serve the application, as far as this server tells; 1 when it does not.

        It matters only where :meth:`room` is None. Any thread may call it.
        """
        return 1

    def is_stopping(self) -> bool:
        """Tell whether this server runs the process and has begun to stop it. Any thread may call it, and often."""
        return False

    def time_to_stop(self) -> float:
        """Return how many seconds stopping may take from its beginning until this server kills the process.

        Infinity when it does not run the process, or does not kill. Any thread may call it.
        """
        return math.inf


def socket_below(file: object) -> socket.socket | None:
    """Return the socket below the buffered file of a server; None when there is none."""
    raw = getattr(file, "raw", None)
    found = getattr(raw, "_sock", None)
    return found if isinstance(raw, socket.SocketIO) and isinstance(found, socket.socket) else None


def read_rest(file: Any) -> bytes:
    """Return what is left in the buffered file of a server, whose file descriptor leads to the dummy already."""
    return b"".join(iter(lambda: file.read(_READ_SIZE), b""))  # Validators insist on a size.
