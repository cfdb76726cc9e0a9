"""The demo's cluster as the programs see it in `cluster/*.yaml`: who is where and has which address.

The checks compare what the agents do against this; the first one compares it with the addresses that CNI gives out.
"""

from topology import NodeSpec, PodSpec

RUN_DIR = "/run/sluicegate-demo"

NODES = [
    NodeSpec("node-a", ("192.0.2.11", "2001:db8::11"), ("10.244.1.0/24", "fd00:10:244:1::/64")),
    NodeSpec("node-b", ("192.0.2.12", "2001:db8::12"), ("10.244.2.0/24", "fd00:10:244:2::/64")),
]
KERNEL = NodeSpec("kernel", ("192.0.2.13", "2001:db8::13"), ("10.244.3.0/24", "fd00:10:244:3::/64"))
KERNEL_MAC = "0a:58:0a:f4:03:00"
KERNEL_POD = ("10.244.3.10", "fd00:10:244:3::10")

PODS = [
    PodSpec("shop/web-0", "node-a", ("10.244.1.10", "fd00:10:244:1::10")),
    PodSpec("shop/client-a", "node-a", ("10.244.1.20", "fd00:10:244:1::20")),
    PodSpec("finance/billing", "node-a", ("10.244.1.30", "fd00:10:244:1::30")),
    PodSpec("shop/web-1", "node-b", ("10.244.2.10", "fd00:10:244:2::10")),
    PodSpec("shop/client-b", "node-b", ("10.244.2.20", "fd00:10:244:2::20")),
    PodSpec("shop/db-0", "node-b", ("10.244.2.30", "fd00:10:244:2::30")),
]

# The host outside: on the nodes' segment it is their gateway, the addresses behind it are what it serves on.
GATEWAY = ("192.0.2.1", "2001:db8::1")
OUTSIDE = ("198.51.100.10", "2001:db8:7::10")
EGRESS = ("192.0.2.50", "2001:db8::50")

WEB = ("10.96.0.80", "fd00:10:96::80")
DB = ("10.96.0.54", "fd00:10:96::54")
EMPTY = ("10.96.0.99", "fd00:10:96::99")
LIVE = "10.96.0.90"
NODE_PORT = 30080
NODE_PORT_UDP = 30053
