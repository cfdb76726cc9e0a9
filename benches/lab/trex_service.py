"""TRex (stateless) profile: the stream of `pktgen flood`, for a lab with NICs.

    start -f trex_service.py -m 1mpps -t --to 10.96.0.10 --flows 100000 --size 64

Varied are source port and source address, so that every packet of a pass is another flow, as in `sluice bench pipeline`.
`--vxlan 1` sends what a peer node would: the same inner packets inside VXLAN, VNI 4096, outer UDP checksum zero.
"""
import argparse

from scapy.all import IP, UDP, Ether, Raw
from scapy.layers.vxlan import VXLAN
from trex_stl_lib.api import STLPktBuilder, STLScVmRaw, STLStream, STLTXCont, STLVmFixIpv4, STLVmFlowVar, STLVmWrFlowVar

GATEWAY = "02:00:a9:fe:01:01"      # our end of a pod's port
IMIX = ((64, 7), (594, 4), (1518, 1))  # frame length with FCS, share (RFC 6985)
PORTS = 50_000


class Service:
    def get_streams(self, direction=0, tunables=(), **_):
        parser = argparse.ArgumentParser()
        parser.add_argument("--to", default="10.96.0.10")
        parser.add_argument("--from", dest="source", default="10.244.2.10")
        parser.add_argument("--port", type=int, default=80)
        parser.add_argument("--flows", type=int, default=100_000)
        parser.add_argument("--size", default="64", help="frame length with FCS, or imix")
        parser.add_argument("--to-mac", default=GATEWAY)
        parser.add_argument("--vxlan", type=int, default=0)
        parser.add_argument("--peer", default="192.0.2.12", help="VXLAN: the node that seems to send")
        parser.add_argument("--node", default="192.0.2.11", help="VXLAN: the node under test")
        options = parser.parse_args(tunables)
        sizes = IMIX if options.size == "imix" else ((int(options.size), 1),)
        total = sum(share for _, share in sizes)
        return [self.stream(options, size, 100.0 * share / total) for size, share in sizes]

    @staticmethod
    def stream(options, size, percent):
        inner = Ether(dst=options.to_mac) / IP(src=options.source, dst=options.to) / UDP(sport=1024, dport=options.port, chksum=0)
        outer = 0
        if options.vxlan:
            wrap = IP(src=options.peer, dst=options.node) / UDP(sport=50_000, dport=4789, chksum=0) / VXLAN(vni=4096, flags=8)
            outer = len(Ether() / wrap)
            inner = Ether() / wrap / inner
        packet = inner / Raw(b"\0" * max(0, size - 4 - (len(inner) - outer)))
        ip, udp = f"IP:{1 if outer else 0}", f"UDP:{1 if outer else 0}"
        addresses = max(1, options.flows // PORTS)
        vm = STLScVmRaw([
            STLVmFlowVar("port", min_value=1024, max_value=1023 + min(options.flows, PORTS), size=2, op="inc"),
            STLVmFlowVar("host", min_value=10, max_value=9 + min(addresses, 240), size=1, op="inc"),
            STLVmWrFlowVar("port", pkt_offset=f"{udp}.sport"),
            STLVmWrFlowVar("host", pkt_offset=f"{ip}.src", offset_fixup=3),
            STLVmFixIpv4(offset=ip),
        ])
        return STLStream(packet=STLPktBuilder(pkt=packet, vm=vm), mode=STLTXCont(percentage=percent))


def register():
    return Service()
