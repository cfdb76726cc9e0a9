"""Capture files: the classic pcap format, written with microseconds, read in every variant.

Kept apart from scapy on purpose: the stories match frames to packets by exact timestamps, so no floating point
may touch them. A time is a whole number of microseconds everywhere in this folder.
"""

import struct

ETHERNET = 1
MICROSECONDS = 0xA1B2C3D4
NANOSECONDS = 0xA1B23C4D


class BadCapture(Exception):
    """A file that is not a whole Ethernet capture."""


def write(path, frames):
    """Writes `frames`, a list of (microseconds, bytes), to `path`."""
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", MICROSECONDS, 2, 4, 0, 0, 262144, ETHERNET))
        for when, data in frames:
            file.write(struct.pack("<IIII", when // 1_000_000, when % 1_000_000, len(data), len(data)))
            file.write(data)


def read(path):
    """Reads `path` into a list of (microseconds, bytes)."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < 24:
        raise BadCapture(f"{path}: shorter than a pcap header")
    for order in "<>":
        magic = struct.unpack(order + "I", data[:4])[0]
        if magic in (MICROSECONDS, NANOSECONDS):
            break
    else:
        raise BadCapture(f"{path}: not a classic pcap file (magic {data[:4].hex()})")
    if struct.unpack(order + "I", data[20:24])[0] & 0xFFFF != ETHERNET:
        raise BadCapture(f"{path}: link type is not Ethernet")
    divisor = 1 if magic == MICROSECONDS else 1000
    frames, at = [], 24
    while at < len(data):
        if at + 16 > len(data):
            raise BadCapture(f"{path}: record header cut short at byte {at}")
        seconds, fraction, kept, length = struct.unpack(order + "IIII", data[at : at + 16])
        if kept != length or at + 16 + kept > len(data):
            raise BadCapture(f"{path}: record cut short at byte {at}")
        frames.append((seconds * 1_000_000 + fraction // divisor, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return frames
