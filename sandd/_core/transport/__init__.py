"""One WebSocket connection, dialled or accepted, that survives whatever its peer does.

This package alone imports trio-websocket, wsproto and h11; nothing of theirs leaves it, so that
another WebSocket library could take their place behind these names. trio-websocket keeps what
it is good at - the reader loop, the write lock, both handshakes - between two guards that it can't
get around, because it reads and writes through nothing else:

    _connection.py  Connection: what the rest of sandd sees, and what trio-websocket reads from
        trio_websocket.WebSocketConnection
    _protocol.py    GuardedProtocol: wsproto with limits; every event passes here (no I/O)
    _secure_stream.py  SecureStream: TLS, for wss; what it encrypts and decrypts is in
    _tls.py            TlsEnd, around Python's ssl (no I/O)
    _streams.py     MeteredStream: the socket, and when it last took a byte
    _resting.py     where those are read together of whose peers nothing is expected

    _client.py      connect(): TCP, TLS and WebSocket handshake within one deadline
    _server.py      serve(): the accept loop; each connection guarded by itself
    _places.py      whose handshakes make way for whose, while there are too many
    _http.py        what the server answers to a request before, or instead of, a WebSocket

Two private names of trio-websocket are used, `WebSocketConnection._reader_task` and its
`_stream_lock`, and two of wsproto, `H11Handshake._h11_connection` and its `_process_connection_request`;
tests hold them.
"""

from sandd._core.transport._client import connect, fetch
from sandd._core.transport._connection import Connection
from sandd._core.transport._http import BUNDLE_PATH, Document, Question, Refusal
from sandd._core.transport._server import ListenAddress, serve

__all__ = [
    "BUNDLE_PATH",
    "Connection",
    "Document",
    "ListenAddress",
    "Question",
    "Refusal",
    "connect",
    "fetch",
    "serve",
]
