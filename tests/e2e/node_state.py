"""What a network namespace looks like, so that 'left as found' can be compared line by line."""

import re

SYSCTLS = r"net\.ipv[46]\.(conf\.(all|default|eth0|lo)\.|ip_forward|ip_local_port_range|neigh\.(default|eth0)\.)"


def inventory(namespace):
    """Links, addresses, routes, rules, filters, offloads and settings of a namespace, as a set of lines."""
    lines = set()

    def add(kind, text):
        for line in text.splitlines():
            # Counters of time and interface numbers are not state that anyone sets.
            line = re.sub(r"^\d+: |\s+expires \S+|(?<=@)if\d+|\bnhid \d+", "", line).strip()
            if line:
                lines.add(f"{kind}: {line}")

    for link in namespace.ip("-o", "-d", "link", "show").stdout.splitlines():
        name = link.split(": ")[1].split("@")[0]
        add("link", f"{name} {'xdp' if 'prog/xdp' in link else 'no xdp'} "
            + " ".join(re.findall(r"(?:mtu|promiscuity|link/ether) \S+", link)))
    add("address", namespace.ip("-o", "address", "show", "scope", "global").stdout)
    for version in ("-4", "-6"):
        add(f"route {version}", namespace.ip(version, "route", "show", "table", "all").stdout)
        add(f"rule {version}", namespace.ip(version, "rule", "show").stdout)
    add("filter", namespace.run("nft", "list", "ruleset").stdout)
    add("offload", namespace.run("ethtool", "-k", "eth0").stdout)
    settings = namespace.run("sysctl", "-a", "--pattern", SYSCTLS).stdout
    add("setting", "\n".join(line for line in settings.splitlines() if "stable_secret" not in line))
    return lines


def difference(before, after):
    """What changed, readable; empty if nothing did."""
    gone = [f"  gone  {line}" for line in sorted(before - after)]
    new = [f"  new   {line}" for line in sorted(after - before)]
    return "\n".join(gone + new)
