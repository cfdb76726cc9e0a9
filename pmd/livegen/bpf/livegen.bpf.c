/* Writes one generated frame and sends it out of an interface.
 *
 * Run by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES (Documentation/bpf/bpf_prog_run.rst, Linux 5.18): the kernel
 * hands in pages that it recycles without cleaning, so all headers are written anew for each packet.
 *
 * The first HEAD bytes come from the template; varied are the source port (the flow) and the destination address. The
 * IPv4 header checksum is computed. The transport checksum stays right because the word behind the UDP header takes up
 * what the port changes; with several destinations over IPv4 the template's is zero.
 */
#include "kernel.h"

enum { HEAD = 64, DESTINATIONS = 1024 };

struct stream {
	u32 ifindex;
	u32 flows;        /* 1 to 65535: source ports first_port, first_port + 1, ... */
	u32 destinations; /* 1 to DESTINATIONS */
	u16 first_port;   /* host order */
	u16 v6;
	u8 head[HEAD];
};

struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct stream);
} stream SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, DESTINATIONS);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u32);
} destinations SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} sent SEC(".maps");

SEC("xdp")
int livegen(struct xdp_md *ctx)
{
	u8 *data = (u8 *)(long)ctx->data, *end = (u8 *)(long)ctx->data_end;
	u32 zero = 0;
	struct stream *s = bpf_map_lookup_elem(&stream, &zero);
	u64 *count = bpf_map_lookup_elem(&sent, &zero);

	if (!s || !count || data + HEAD > end)
		return XDP_DROP;
	u64 n = (*count)++;
	for (int i = 0; i < HEAD; i += 8)
		*(u64 *)(data + i) = *(u64 *)(s->head + i);
	u16 port = htons((u16)(s->first_port + (u32)(n % (s->flows ? s->flows : 1))));

	if (s->v6) {
		*(u16 *)(data + 54) = port;
		*(u16 *)(data + 62) = ~port;
	} else {
		u32 which = s->destinations > 1 ? (u32)(n % s->destinations) : 0;
		u32 *to = bpf_map_lookup_elem(&destinations, &which);

		if (to)
			*(u32 *)(data + 30) = *to;
		u32 sum = 0;
		*(u16 *)(data + 24) = 0;
		for (int i = 14; i < 34; i += 2)
			sum += *(u16 *)(data + i);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		*(u16 *)(data + 24) = ~sum;
		*(u16 *)(data + 34) = port;
		*(u16 *)(data + 42) = ~port;
	}
	return bpf_redirect(s->ifindex, 0);
}

char licence[] SEC("license") = "Dual MIT/GPL";
