/* Decides, for every packet an interface receives, whether it is Sluicegate's or the kernel's.
 *
 *   ours -> the AF_XDP socket of the receiving queue        all else -> XDP_PASS, untouched
 *
 * Whenever in doubt (truncated, tagged, unknown) the packet is the kernel's: a node must never lose its own traffic to
 * us. One instance of this program and its maps is attached to each interface; the maps are written by user space only,
 * except `fragments` and `verdicts`.
 *
 * Without a socket (the agent is being restarted) what is ours is dropped, not passed, until the time in `guard`: the
 * kernel has no connection for it and would end ours with a reset. An agent that stays away does not renew that time,
 * and then the kernel gets everything.
 *
 * An address is in `local_addrs` as
 *   OWNED  a Service VIP or egress address: every packet to it is ours, ARP and ND for it too;
 *   NODE   the node's own address, shared with the kernel: ours are VXLAN, NodePorts, SNAT ports, and the ICMP
 *          errors and echo replies that belong to those.
 *
 * Fragments: only a first fragment carries ports. Its verdict is remembered for the later ones; a later fragment
 * that overtakes its first one goes to the kernel, which drops it after its reassembly timeout.
 */
#include "kernel.h"

enum { ADDRESS_NODE = 1, ADDRESS_OWNED = 2 };
enum { CONFIG_STEER_ALL = 1 };
enum { VERDICT_PASSED = 0, VERDICT_REDIRECTED = 1, VERDICT_GUARDED = 2, VERDICT_COUNT = 3 };

/* The bound on IPv6 extension headers: more than any sane packet has, few enough to unroll. */
#define MAX_EXTENSIONS 6

/* A header as it lies in a packet: behind the 14 bytes of Ethernet everything is on an even address, no more. */
#define WIRE __attribute__((packed, aligned(2)))

struct address {
	be16 words[8]; /* IPv4 as ::ffff:a.b.c.d */
} WIRE;

struct port_key {
	u8 protocol;
	u8 zero;
	be16 port;
};

struct config {
	be16 vxlan_port; /* 0: no overlay */
	u16 snat_low;    /* host order; an empty range has low > high */
	u16 snat_high;
	u16 zero;
	u32 flags;
};

struct fragment_key {
	struct address source;
	struct address destination;
	u32 id;
	u32 protocol;
};

struct {
	MAP_INT(type, BPF_MAP_TYPE_XSKMAP);
	MAP_INT(max_entries, 64);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u32);
} xsks SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_HASH);
	MAP_INT(max_entries, 16384);
	MAP_INT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct address);
	MAP_TYPE(value, u32);
} local_addrs SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_HASH);
	MAP_INT(max_entries, 65536);
	MAP_INT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct port_key);
	MAP_TYPE(value, u8);
} ports SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct config);
} config SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64); /* nanoseconds of CLOCK_MONOTONIC; 0: nothing is guarded */
} guard SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_INT(max_entries, 4096);
	MAP_TYPE(key, struct fragment_key);
	MAP_TYPE(value, u8);
} fragments SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_INT(max_entries, VERDICT_COUNT);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} verdicts SEC(".maps");

struct ethernet {
	u8 destination[6];
	u8 source[6];
	be16 type;
} WIRE;

struct arp4 {
	be16 hardware;
	be16 protocol;
	u8 hardware_len;
	u8 protocol_len;
	be16 operation;
	u8 sender_mac[6];
	be16 sender[2];
	u8 target_mac[6];
	be16 target[2];
} WIRE;

struct ipv4 {
	u8 version_ihl;
	u8 tos;
	be16 total_len;
	be16 id;
	be16 fragment;
	u8 ttl;
	u8 protocol;
	be16 checksum;
	be16 source[2];
	be16 destination[2];
} WIRE;

struct ipv6 {
	u32 version_class_flow;
	be16 payload_len;
	u8 next_header;
	u8 hop_limit;
	struct address source;
	struct address destination;
} WIRE;

struct extension {
	u8 next_header;
	u8 len; /* in 8-byte units, the first not counted */
	be16 offset_more; /* fragment header: offset in the upper 13 bits, M in the lowest */
	u32 id;
} WIRE;

struct l4_ports {
	be16 source;
	be16 destination;
} WIRE;

struct icmp {
	u8 type;
	u8 code;
	be16 checksum;
	be16 id;
	be16 sequence;
} WIRE;

/* Where a packet's transport header is and what is known of its fragmentation. */
struct transport {
	u32 at; /* bytes from the start of the packet */
	u8 protocol;
	u8 fragmented;
	u8 first;
	u32 id;
};

/* The `size` bytes at `at`, or 0 if the linear part of the packet ends before. */
#define BYTES(data, end, at, type)                                                                                     \
	({                                                                                                             \
		type *header = (type *)((data) + (at));                                                                \
		(void *)(header + 1) > (end) ? (type *)0 : header;                                                     \
	})

INLINE void map_ipv4(struct address *out, const be16 *words)
{
	__builtin_memset(out, 0, sizeof(*out));
	out->words[5] = 0xffff;
	out->words[6] = words[0];
	out->words[7] = words[1];
}

INLINE u32 address_flags(const struct address *address)
{
	u32 *flags = bpf_map_lookup_elem(&local_addrs, address);

	return flags ? *flags : 0;
}

INLINE int in_snat_range(const struct config *config, be16 port)
{
	u16 host = ntohs(port);

	return host >= config->snat_low && host <= config->snat_high;
}

INLINE int is_service_port(u8 protocol, be16 port)
{
	struct port_key key = { .protocol = protocol, .port = port };

	return bpf_map_lookup_elem(&ports, &key) != 0;
}

INLINE int has_ports(u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* Steps over IPv6 extension headers. 0 if there are too many, or the packet ends within them. */
INLINE int skip_extensions(void *data, void *end, struct transport *t)
{
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension *e;

		switch (t->protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			e = BYTES(data, end, t->at, struct extension);
			if (!e)
				return 0;
			t->protocol = e->next_header;
			t->at += ((u32)e->len + 1) * 8;
			break;
		case IPPROTO_FRAGMENT:
			e = BYTES(data, end, t->at, struct extension);
			if (!e)
				return 0;
			t->protocol = e->next_header;
			t->at += 8;
			/* Neither offset nor M: an atomic fragment (RFC 6946), a whole packet. */
			t->fragmented = (e->offset_more & htons(0xfff9)) != 0;
			t->first = (e->offset_more & htons(0xfff8)) == 0;
			t->id = e->id;
			if (!t->first)
				return 1;
			break;
		default:
			return 1;
		}
	}
	return 0;
}

/* Whether the packet quoted in an ICMP error is one that we sent. `t` stands at its transport header. */
INLINE int quoted_is_ours(void *data, void *end, const struct config *config, const struct transport *t)
{
	if (has_ports(t->protocol)) {
		struct l4_ports *p = BYTES(data, end, t->at, struct l4_ports);

		if (!p)
			return 0;
		if (t->protocol == IPPROTO_UDP && config->vxlan_port && p->destination == config->vxlan_port)
			return 1;
		return in_snat_range(config, p->source) || is_service_port(t->protocol, p->source);
	}
	if (t->protocol == IPPROTO_ICMP || t->protocol == IPPROTO_ICMPV6) {
		struct icmp *i = BYTES(data, end, t->at, struct icmp);

		return i && (i->type == 8 || i->type == 128) && in_snat_range(config, i->id);
	}
	return 0;
}

INLINE int icmp_error_is_ours(void *data, void *end, const struct config *config, u32 at)
{
	struct transport quoted = {};
	struct ipv4 *ip = BYTES(data, end, at, struct ipv4);

	if (!ip || ip->version_ihl >> 4 != 4 || (ip->fragment & htons(0x1fff)))
		return 0;
	quoted.protocol = ip->protocol;
	quoted.at = at + (ip->version_ihl & 0xf) * 4;
	return quoted_is_ours(data, end, config, &quoted);
}

INLINE int icmpv6_error_is_ours(void *data, void *end, const struct config *config, u32 at)
{
	struct transport quoted = {};
	struct ipv6 *ip = BYTES(data, end, at, struct ipv6);

	if (!ip)
		return 0;
	quoted.protocol = ip->next_header;
	quoted.at = at + sizeof(*ip);
	if (!skip_extensions(data, end, &quoted) || (quoted.fragmented && !quoted.first))
		return 0;
	return quoted_is_ours(data, end, config, &quoted);
}

/* The rules for a packet to an address that we share with the kernel. */
INLINE int node_packet_is_ours(void *data, void *end, const struct config *config, const struct transport *t)
{
	if (has_ports(t->protocol)) {
		struct l4_ports *p = BYTES(data, end, t->at, struct l4_ports);

		if (!p)
			return 0;
		if (t->protocol == IPPROTO_UDP && config->vxlan_port && p->destination == config->vxlan_port)
			return 1;
		return in_snat_range(config, p->destination) || is_service_port(t->protocol, p->destination);
	}
	if (t->protocol == IPPROTO_ICMP) {
		struct icmp *i = BYTES(data, end, t->at, struct icmp);

		if (!i)
			return 0;
		if (i->type == 0)
			return in_snat_range(config, i->id);
		/* Unreachable, source quench, time exceeded, parameter problem. */
		if (i->type == 3 || i->type == 4 || i->type == 11 || i->type == 12)
			return icmp_error_is_ours(data, end, config, t->at + sizeof(*i));
		return 0;
	}
	if (t->protocol == IPPROTO_ICMPV6) {
		struct icmp *i = BYTES(data, end, t->at, struct icmp);

		if (!i)
			return 0;
		if (i->type == 129)
			return in_snat_range(config, i->id);
		if (i->type >= 1 && i->type <= 4)
			return icmpv6_error_is_ours(data, end, config, t->at + sizeof(*i));
	}
	return 0;
}

/* As above, with the memory for fragments around it. */
INLINE int to_node(void *data, void *end, const struct config *config, const struct transport *t,
		   const struct address *source, const struct address *destination)
{
	struct fragment_key key;
	u8 one = 1;
	int ours;

	if (!t->fragmented)
		return node_packet_is_ours(data, end, config, t);

	__builtin_memset(&key, 0, sizeof(key));
	key.source = *source;
	key.destination = *destination;
	key.id = t->id;
	key.protocol = t->protocol;
	if (!t->first)
		return bpf_map_lookup_elem(&fragments, &key) != 0;
	ours = node_packet_is_ours(data, end, config, t);
	if (ours)
		bpf_map_update_elem(&fragments, &key, &one, BPF_ANY);
	else
		bpf_map_delete_elem(&fragments, &key);
	return ours;
}

INLINE int arp_is_ours(void *data, void *end)
{
	struct arp4 *arp = BYTES(data, end, sizeof(struct ethernet), struct arp4);
	struct address target;

	if (!arp || arp->hardware != htons(1) || arp->protocol != htons(ETH_P_IP))
		return 0;
	map_ipv4(&target, arp->target);
	return (address_flags(&target) & ADDRESS_OWNED) != 0;
}

INLINE int ipv4_is_ours(void *data, void *end, const struct config *config)
{
	struct ipv4 *ip = BYTES(data, end, sizeof(struct ethernet), struct ipv4);
	struct address source, destination;
	struct transport t = {};
	u32 flags;

	if (!ip || ip->version_ihl >> 4 != 4 || (ip->version_ihl & 0xf) < 5)
		return 0;
	map_ipv4(&destination, ip->destination);
	flags = address_flags(&destination);
	if (flags & ADDRESS_OWNED)
		return 1;
	if (!(flags & ADDRESS_NODE))
		return 0;
	map_ipv4(&source, ip->source);
	t.at = sizeof(struct ethernet) + (ip->version_ihl & 0xf) * 4;
	t.protocol = ip->protocol;
	t.fragmented = (ip->fragment & htons(0x3fff)) != 0;
	t.first = (ip->fragment & htons(0x1fff)) == 0;
	t.id = ip->id;
	return to_node(data, end, config, &t, &source, &destination);
}

INLINE int ipv6_is_ours(void *data, void *end, const struct config *config)
{
	struct ipv6 *ip = BYTES(data, end, sizeof(struct ethernet), struct ipv6);
	struct address source, destination;
	struct transport t = {};
	u32 flags;

	if (!ip)
		return 0;
	t.at = sizeof(struct ethernet) + sizeof(*ip);
	t.protocol = ip->next_header;
	if (t.protocol == IPPROTO_ICMPV6) {
		struct icmp *i = BYTES(data, end, sizeof(struct ethernet) + sizeof(*ip), struct icmp);

		/* A neighbour solicitation is sent to a group; what it asks for stands behind its header. */
		if (i && i->type == 135) {
			struct address *target = BYTES(data, end, sizeof(struct ethernet) + sizeof(*ip) + sizeof(*i),
						       struct address);

			if (!target)
				return 0;
			destination = *target;
			return (address_flags(&destination) & ADDRESS_OWNED) != 0;
		}
	}
	destination = ip->destination;
	flags = address_flags(&destination);
	if (flags & ADDRESS_OWNED)
		return 1;
	if (!(flags & ADDRESS_NODE))
		return 0;
	source = ip->source;
	if (!skip_extensions(data, end, &t))
		return 0;
	return to_node(data, end, config, &t, &source, &destination);
}

INLINE int is_ours(void *data, void *end)
{
	struct ethernet *eth = BYTES(data, end, 0, struct ethernet);
	u32 zero = 0;
	struct config *c = bpf_map_lookup_elem(&config, &zero);

	if (!c)
		return 0;
	if (c->flags & CONFIG_STEER_ALL)
		return 1;
	if (!eth)
		return 0;
	switch (eth->type) {
	case htons(ETH_P_IP):
		return ipv4_is_ours(data, end, c);
	case htons(ETH_P_IPV6):
		return ipv6_is_ours(data, end, c);
	case htons(ETH_P_ARP):
		return arp_is_ours(data, end);
	default: /* VLAN tags included */
		return 0;
	}
}

/* Hands the packet to the socket of its queue if it is ours, and counts what became of it. */
INLINE int steer(struct xdp_md *ctx, int ours)
{
	u32 verdict = VERDICT_PASSED, zero = 0;
	long action = XDP_PASS;
	u64 *count, *until;

	if (ours) {
		action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
		if (action == XDP_REDIRECT) {
			verdict = VERDICT_REDIRECTED;
		} else {
			until = bpf_map_lookup_elem(&guard, &zero);
			if (until && *until > bpf_ktime_get_ns()) {
				action = XDP_DROP;
				verdict = VERDICT_GUARDED;
			}
		}
	}
	count = bpf_map_lookup_elem(&verdicts, &verdict);
	if (count)
		*count += 1;
	return (int)action;
}

/* For interfaces shared with the kernel: the node's uplink. */
SEC("xdp.frags") int sluice(struct xdp_md *ctx)
{
	return steer(ctx, is_ours((void *)(long)ctx->data, (void *)(long)ctx->data_end));
}

/* For interfaces that are ours alone: pods. Apart from the above because the verifier takes 45 ms for that one. */
SEC("xdp.frags") int sluice_all(struct xdp_md *ctx)
{
	return steer(ctx, 1);
}

/* No helper used here is reserved to GPL programs, so the licence is the project's. */
char _license[] SEC("license") = "Apache-2.0";
