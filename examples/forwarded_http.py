"""HTTP with a server inside the sandbox, as if it ran here; and a server here, for those inside."""

import sys
from functools import partial

import httpx
import trio

import sandd

DAEMON = [sys.executable, "-m", "sandd.daemon", "--daemon-id", "worker-1", "--log-level", "warning"]
SERVER = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).upper()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


async def answer(stream: trio.SocketStream) -> None:
    """What somebody inside the sandbox hears who asks us."""
    async with stream:
        print(f"asked: {await stream.receive_some()!r}")
        await stream.send_all(b"from outside")


async def work(worker: sandd.Daemon) -> None:
    """Talk to a server there; then be one for somebody there."""
    async with worker.open_process([sys.executable, "-c", SERVER]) as server:
        port = int(await server.stdout.receive_some())
        async with worker.forward_port(port) as (host, local_port), httpx.AsyncClient() as client:
            response = await client.post(f"http://{host}:{local_port}/", content="hello")
            print(f"{response.status_code}: {response.text}")
            response = await client.post(f"http://{host}:{local_port}/", content="y" * 5_000_000)
            print(f"{response.status_code}: {len(response.text)} characters")
    async with trio.open_nursery() as nursery:
        ask = "import socket; s = socket.create_connection(('{}', {})); s.sendall(b'inside'); print(s.recv(99))"
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        async with worker.reverse_port(listener.socket.getsockname()[1]) as (host, there):
            result = await worker.run([sys.executable, "-c", ask.format(host, there)], check=True)
            print(f"heard: {result.stdout.strip()}")
        nursery.cancel_scope.cancel()


async def main() -> None:
    """Start a controller, a daemon of our own, and work with it."""
    async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
        nursery.start_soon(trio.run_process, [*DAEMON, "--server-url", controller.url])
        with trio.fail_after(60):
            await work(await controller.wait_for_daemon("worker-1"))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
