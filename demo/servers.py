"""The server of every pod: says over HTTP, TCP and UDP who answered, whom it saw and on which address.

    servers.py --name web-0 --http 8080 --lines 5432 --udp 8053 [--address 198.51.100.10 ...]

HTTP: `GET /` gives {"server", "peer", "port", "local"}; `GET /bytes/N` gives N bytes that `payload(N)` knows.
Lines: each line that comes in on the TCP port is answered by one such JSON line, for as long as the connection lives.
UDP: each datagram is answered by one such JSON object.
"""

import argparse
import asyncio
import json
import signal
import socket


def payload(length):
    """The body of `/bytes/N`: every four bytes differ, so that a lost or swapped piece shows."""
    return b"".join(i.to_bytes(4, "big") for i in range((length + 3) // 4))[:length]


def plain(address):
    """An IPv4 address without the form it has on an IPv6 socket."""
    return address.removeprefix("::ffff:")


class Server:
    def __init__(self, name):
        self.name = name

    def describe(self, peer, local, **more):
        seen = {"server": self.name, "peer": plain(peer[0]), "port": peer[1], "local": plain(local[0]), **more}
        return json.dumps(seen).encode()

    async def http(self, reader, writer):
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            path = request.split(b" ", 2)[1].decode()
            kind, body = "application/json", b""
            if path.startswith("/bytes/"):
                kind, body = "application/octet-stream", payload(min(int(path[7:]), 1 << 28))
            else:
                addresses = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
                body = self.describe(*addresses, path=path)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            pass
        finally:
            writer.close()

    async def lines(self, reader, writer):
        count = 0
        try:
            while await reader.readline():
                count += 1
                addresses = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
                writer.write(self.describe(*addresses, line=count) + b"\n")
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server):
        self.server = server
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        local = self.transport.get_extra_info("sockname")
        self.transport.sendto(self.server.describe(peer, local, bytes=len(data)), peer)


def listen(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen(128)
    sock.setblocking(False)
    return sock


async def serve(options):
    server = Server(options.name)
    loop = asyncio.get_running_loop()
    for address in options.address or ["::"]:
        if options.http:
            await asyncio.start_server(server.http, sock=listen(socket.SOCK_STREAM, address, options.http))
        if options.lines:
            await asyncio.start_server(server.lines, sock=listen(socket.SOCK_STREAM, address, options.lines))
        if options.udp:
            datagrams = listen(socket.SOCK_DGRAM, address, options.udp)
            await loop.create_datagram_endpoint(lambda: Datagrams(server), sock=datagrams)
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--address", action="append", help="listen here only (repeatable; default: everywhere)")
    parser.add_argument("--http", type=int, default=0)
    parser.add_argument("--lines", type=int, default=0)
    parser.add_argument("--udp", type=int, default=0)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
