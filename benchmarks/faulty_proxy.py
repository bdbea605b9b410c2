"""An HTTP proxy on loopback that harms chosen requests: closes, delays, cuts, alters or refuses them.

One upstream server, HTTP/1.1 without TLS. Requests and answers are held in memory, so this is for small objects.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

HOST = "127.0.0.1"
_SECONDS = 30.0
_PIECE = 256

Kind = Literal[
    "reset_request",  # RST once it has arrived; the server never sees it
    "cut_request",  # the server gets half of the body, then both sides are closed
    "lost_answer",  # the server does it, the client is not told
    "status",  # answered with `status` and an S3 error; the server never sees it
    "reset_answer",  # RST after half of the answer
    "truncate_answer",  # closed after half of the answer
    "shorten_answer",  # half of the answer's body, with a matching Content-Length
    "slow_answer",  # in pieces, over `seconds`
    "stall_answer",  # half, then nothing for `seconds`, then closed
    "flip_request",  # one bit of the body
    "flip_answer",
]


@dataclass(frozen=True)
class Fault:
    """What to do to `times` requests by `method` ("": any) whose path contains `part`, after the first `skip` of them.

    `position` in [0, 1) says where a bit is flipped; `code` and `message` are the S3 error of a `status`.
    """

    kind: Kind
    method: str
    part: str = ""
    times: int = 1
    skip: int = 0
    position: float = 0.5
    seconds: float = 0.0
    status: int = 500
    code: str = "InternalError"
    message: str = "We encountered an internal error. Please try again."


@dataclass
class _Message:
    head: list[bytes]
    body: bytes

    def header(self, name: bytes) -> bytes:
        for line in self.head[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name:
                return value.strip()
        return b""

    def without(self, *names: bytes) -> list[bytes]:
        return [line for line in self.head if line.partition(b":")[0].strip().lower() not in names]

    def raw(self) -> bytes:
        return b"\r\n".join(self.head) + b"\r\n\r\n" + self.body


class FaultyProxy:
    """Forwards to a port of loopback; `harm` arms a fault. Close it, or use it in a `with` block."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.met = 0
        """Requests that met the fault armed last."""
        self._fault: Fault | None = None
        self._passed = 0
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def harm(self, fault: Fault) -> Iterator[None]:
        """Let requests meet `fault` inside the `with` block."""
        with self._lock:
            self._fault, self._passed, self.met = fault, 0, 0
        try:
            yield
        finally:
            with self._lock:
                self._fault = None

    @contextlib.contextmanager
    def away(self, seconds: float | None = None) -> Iterator[None]:
        """Refuse connections inside the `with` block, or for `seconds` from its start."""
        self.met = 1
        self.close()
        back = threading.Event()

        def later() -> None:
            back.wait(seconds)
            self._listener = self._listen(self.port)

        thread = threading.Thread(target=later)
        thread.start()
        try:
            yield
        finally:
            if seconds is None:
                back.set()
            thread.join()

    def close(self) -> None:
        """Stop listening and drop all connections."""
        # Wakes the thread in accept(), which a bare close leaves asleep with the port still open.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            _reset(client)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server((HOST, port), backlog=64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(_SECONDS)
        with self._lock:
            self._clients.add(client)
        try:
            # What goes wrong here the client sees as a lost connection, which is what this program is for.
            with client, contextlib.suppress(OSError, ValueError):
                while (request := _read(client, client)) is not None:
                    fault = self._choose(request)
                    if not self._forward(client, request, fault):
                        return
        finally:
            with self._lock:
                self._clients.discard(client)

    def _choose(self, request: _Message) -> Fault | None:
        method, path, _ = request.head[0].decode("latin-1").split(" ", 2)
        with self._lock:
            fault = self._fault
            if fault is None or fault.method not in ("", method) or fault.part not in path:
                return None
            self._passed += 1
            if self._passed <= fault.skip or self.met >= fault.times:
                return None
            self.met += 1
            return fault

    def _forward(self, client: socket.socket, request: _Message, fault: Fault | None) -> bool:
        """Pass one request on and its answer back; return whether the connection goes on."""
        kind = fault.kind if fault is not None else None
        if fault is not None and kind == "flip_request":
            request.body = _flip(request.body, fault.position)
        if kind == "reset_request":
            _reset(client)
            return False
        if fault is not None and kind == "status":
            text = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>".encode()
            head = [f"HTTP/1.1 {fault.status} Ordered".encode(), b"Content-Type: application/xml"]
            head.append(b"Content-Length: %d" % len(text))
            client.sendall(_Message(head, b"" if request.head[0].startswith(b"HEAD") else text).raw())
            return True
        request.head = request.without(b"expect")
        with socket.create_connection((HOST, self.upstream), _SECONDS) as server:
            if kind == "cut_request":
                server.sendall(_Message(request.head, request.body[: len(request.body) // 2]).raw())
                return False
            server.sendall(request.raw())
            answer = _read(server, None, request.head[0].split(b" ")[0])
        if answer is None or kind == "lost_answer":
            return False
        return self._answer(client, answer, fault)

    def _answer(self, client: socket.socket, answer: _Message, fault: Fault | None) -> bool:
        kind, half = fault.kind if fault is not None else None, len(answer.body) // 2
        if fault is not None and kind == "flip_answer":
            answer.body = _flip(answer.body, fault.position)
        if kind == "shorten_answer":
            answer.body = answer.body[:half]
            answer.head = [*answer.without(b"content-length"), b"Content-Length: %d" % half]
        raw = answer.raw()
        part = len(raw) - len(answer.body) + half
        if fault is not None and kind == "slow_answer":
            for start in range(0, len(raw), _PIECE):
                client.sendall(raw[start : start + _PIECE])
                time.sleep(fault.seconds * _PIECE / len(raw))
        elif fault is not None and kind in ("truncate_answer", "reset_answer", "stall_answer"):
            client.sendall(raw[:part])
            time.sleep(fault.seconds)
            if kind == "reset_answer":
                _reset(client)
            return False
        else:
            client.sendall(raw)
        return True


def _reset(connection: socket.socket) -> None:
    """Close with RST, at once."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A thread that waits in recv() keeps a closed socket alive, so that no RST would be sent.
        connection.shutdown(socket.SHUT_RD)
        connection.close()


def _flip(body: bytes, position: float) -> bytes:
    data = bytearray(body)
    if data:
        data[int(position * len(data))] ^= 1
    return bytes(data)


def _read(source: socket.socket, asker: socket.socket | None, method: bytes = b"") -> _Message | None:
    """Read one message, chunked bodies joined; None at the end. `asker`: whom to tell 100 Continue."""
    stream = source.makefile("rb")
    head = list[bytes]()
    while (line := stream.readline().rstrip(b"\r\n")) or not head:
        if not line:
            return None
        head.append(line)
    if head[0].startswith(b"HTTP/1.1 100"):
        return _read(source, asker, method)
    message = _Message(head, b"")
    if asker is not None and message.header(b"expect"):
        asker.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = message.header(b"content-length")
    if method == b"HEAD" or head[0].split(b" ")[1] in (b"204", b"304"):
        return message
    if b"chunked" in message.header(b"transfer-encoding").lower():
        while size := int(stream.readline().split(b";")[0], 16):
            message.body += stream.read(size)
            stream.readline()
        while stream.readline().strip():
            pass
        message.head = [*message.without(b"transfer-encoding"), b"Content-Length: %d" % len(message.body)]
    elif length:
        message.body = stream.read(int(length))
        if len(message.body) < int(length):
            return None
    return message
