#!/usr/bin/env python3
"""A resolver for one name: `resolver.py serve ADDRESS…` answers A and AAAA, `resolver.py ask SERVER NAME` prints the answer."""

import ipaddress
import selectors
import socket
import struct
import sys

TYPES = {4: 1, 6: 28}


def answer(query, addresses):
    end = 12
    while query[end]:
        end += 1 + query[end]
    kind = struct.unpack("!H", query[end + 1 : end + 3])[0]
    known = [a for a in addresses if TYPES[a.version] == kind]
    records = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(a.packed)) + a.packed for a in known)
    return query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(known), 0, 0) + query[12 : end + 5] + records


def serve(addresses):
    addresses = [ipaddress.ip_address(a) for a in addresses]
    waiting = selectors.DefaultSelector()
    for kind, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        sock = socket.socket(kind, socket.SOCK_DGRAM)
        if kind == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((anywhere, 53))
        waiting.register(sock, selectors.EVENT_READ)
    while True:
        for ready, _ in waiting.select():
            query, client = ready.fileobj.recvfrom(512)
            ready.fileobj.sendto(answer(query, addresses), client)


def ask(server, name):
    version = ipaddress.ip_address(server).version
    wire = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(2)
    sock.connect((server, 53))
    sock.send(struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + wire + struct.pack("!HH", TYPES[version], 1))
    got = sock.recv(512)
    print(ipaddress.ip_address(got[-16 if version == 6 else -4 :]))


if sys.argv[1] == "serve":
    serve(sys.argv[2:])
else:
    ask(*sys.argv[2:])
