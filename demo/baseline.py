"""What the kernel does with the same TCP stream: two namespaces with a third between them that routes."""

from namespaces import Namespace
from probes import throughput


def namespaces(prefix):
    return [Namespace(f"{prefix}base-{end}") for end in ("left", "router", "right")]


def kernel_routing(prefix, processes, seconds=2):
    """Bits per second of one TCP stream that a kernel router forwards between two veth pairs."""
    left, router, right = everyone = namespaces(prefix)
    try:
        for namespace in everyone:
            namespace.create()
        router.sysctl("net.ipv4.ip_forward", 1)
        for number, end in enumerate((left, right), start=1):
            router.ip("link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", end.name)
            router.ip("address", "add", f"198.18.{number}.1/24", "dev", f"to{number}")
            router.ip("link", "set", f"to{number}", "up")
            end.ip("address", "add", f"198.18.{number}.2/24", "dev", "eth0")
            end.ip("link", "set", "eth0", "up")
            end.ip("route", "add", "default", "via", f"198.18.{number}.1")
        return throughput(processes, right, left, "198.18.2.2", seconds)
    finally:
        for namespace in everyone:
            namespace.delete()
