/* The kernel interfaces of livegen.bpf.c, spelled out: the object depends on no host headers. Values are the kernel's
 * stable ABI (include/uapi/linux/bpf.h). */
#ifndef LIVEGEN_KERNEL_H
#define LIVEGEN_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
	u32 egress_ifindex;
};

enum { XDP_DROP = 1 };
enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6 };

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_redirect)(u32 ifindex, u64 flags) = (void *)23;

#define SEC(name) __attribute__((section(name), used))
#define MAP_INT(name, value) int(*name)[value]
#define MAP_TYPE(name, type) type *name

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) __builtin_bswap16(x)
#else
#define htons(x) (x)
#endif

#endif
