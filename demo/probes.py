"""The clients: curl, ping, iperf3, and sockets opened inside a namespace.

Each probe says what came back as a value; that nothing came back, or a refusal, is an exception with a name.
"""

import json
import select
import socket
import subprocess
import time

from namespaces import run, wait_until
from servers import payload


class Silence(Exception):
    """No answer within the time allowed."""


class Refused(Exception):
    """Answered with a reset or an ICMP error."""


def bracket(address):
    return f"[{address}]" if ":" in address else address


def fetch(namespace, address, port=8080, path="/", source=None, patience=3.0):
    """One HTTP request by curl. Returns the server's description of it, or the body's bytes for another type."""
    command = ["curl", "-sS", "--max-time", patience, "-o", "-"]
    if source:
        command += ["--interface", source]
    command = namespace.command(*command, f"http://{bracket(address)}:{port}{path}")
    done = subprocess.run(command, capture_output=True, timeout=patience + 5)
    if done.returncode == 28:
        raise Silence(f"no HTTP answer from {address} port {port} within {patience:g} s")
    if done.returncode in (7, 56):
        raise Refused(f"{address} port {port} refused")
    if done.returncode != 0:
        raise OSError(f"curl {address}: {done.stderr.decode().strip()}")
    return json.loads(done.stdout) if done.stdout[:1] == b"{" else done.stdout


def fetch_bytes(namespace, address, length, port=8080, patience=15.0):
    """Fetches `length` bytes and compares each of them."""
    body = fetch(namespace, address, port, f"/bytes/{length}", patience=patience)
    if body != payload(length):
        raise ValueError(f"{address}: {len(body)} bytes of {length} came, or other ones")
    return length


def _socket(namespace, kind, address):
    with namespace.entered():
        return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)


class Conversation:
    """A TCP connection to a server's line port that lives across several questions."""

    def __init__(self, namespace, address, port=5432, patience=2.0):
        self.sock = _socket(namespace, socket.SOCK_STREAM, address)
        self.sock.settimeout(patience)
        try:
            self.sock.connect((address, port))
        except TimeoutError:
            self.close()
            raise Silence(f"no TCP answer from {address} port {port} within {patience:g} s") from None
        except OSError as error:
            self.close()
            raise Refused(f"{address} port {port}: {error.strerror}") from None
        self.rest = b""

    def ask(self, patience=2.0):
        """One line there, one line back."""
        try:
            self.sock.settimeout(patience)
            self.sock.sendall(b"?\n")
            while b"\n" not in self.rest:
                more = self.sock.recv(65536)
                if not more:
                    raise Refused("the connection was closed")
                self.rest += more
        except TimeoutError:
            raise Silence(f"no line within {patience:g} s") from None
        except OSError as error:
            raise Refused(f"the connection broke: {error.strerror}") from None
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def request(namespace, address, port=8080, patience=2.0):
    """One HTTP request over a socket of our own, where many are wanted in little time."""
    with _socket(namespace, socket.SOCK_STREAM, address) as sock:
        sock.settimeout(patience)
        try:
            sock.connect((address, port))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        except TimeoutError:
            raise Silence(f"no answer from {address} port {port} within {patience:g} s") from None
        except OSError as error:
            raise Refused(f"{address} port {port}: {error.strerror}") from None
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


def datagram(namespace, address, port=8053, length=32, tries=3, patience=1.0):
    """One UDP question. Returns the answer with `from`, the address it came from. A lost one is asked again."""
    with _socket(namespace, socket.SOCK_DGRAM, address) as sock:
        sock.setblocking(False)
        for _ in range(tries):
            try:
                sock.sendto(bytes(length), (address, port))
            except OSError as error:
                raise Refused(f"{address} port {port}: {error.strerror}") from None
            if select.select([sock], [], [], patience)[0]:
                data, peer = sock.recvfrom(65536)
                return {**json.loads(data), "from": peer[0]}
    raise Silence(f"no UDP answer from {address} port {port}, asked {tries} times")


def ping(namespace, address, count=3, size=56, patience=1, dont_fragment=False):
    """Echo requests. Returns how many answers came."""
    fragments = ["-M", "do" if dont_fragment else "dont"]
    done = namespace.run("ping", "-n", "-q", "-i", "0.1", "-c", count, "-W", patience, "-s", size, *fragments, address,
                         check=False)
    for part in done.stdout.split(","):
        if part.strip().endswith("received"):
            return int(part.split()[0])
    raise OSError(f"ping {address}: {done.stderr.strip() or done.stdout.strip()}")


def throughput(processes, server, client, address, seconds=2):
    """One TCP stream by iperf3, from `client` to `server` (namespaces). Returns bits per second received."""
    process = processes.start("iperf3", server, "iperf3", "-s", "-1", "-p", 5201)
    try:
        wait_until("iperf3 listening", lambda: ":5201 " in server.run("ss", "-ltnH").stdout, 5)
        done = run(*["setsid", "-w"], *client.command("iperf3", "-c", address, "-p", 5201, "-t", seconds, "-J",
                                                      "--connect-timeout", 3000), timeout=seconds + 20, check=False)
        report = json.loads(done.stdout)
        if "error" in report:
            raise OSError(f"iperf3: {report['error']}")
        return report["end"]["sum_received"]["bits_per_second"]
    finally:
        processes.end(process)


class Observer:
    """Reads the agent's stream of events (`GET /v1/observe`) while the block runs."""

    def __init__(self, node):
        self.node = node

    def __enter__(self):
        command = ["curl", "-sSN", "--unix-socket", self.node.socket, "http://sluiced/v1/observe"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        start_new_session=True)
        time.sleep(0.2)
        return self

    def events(self, seconds, wanted):
        """The first event for which `wanted` holds, within `seconds`; else none."""
        end = time.monotonic() + seconds
        buffered = b""
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.process.stdout], [], [], left)[0]:
                break
            more = self.process.stdout.read1(65536)
            if not more:
                break
            *lines, buffered = (buffered + more).split(b"\n")
            for line in lines:
                event = json.loads(line) if line.strip() else {}
                if wanted(event):
                    return event
        return None

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
