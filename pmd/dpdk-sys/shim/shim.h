/* What bindgen reads: DPDK's headers, and the functions of shim.c. */
#ifndef SLUICE_DPDK_SHIM_H
#define SLUICE_DPDK_SHIM_H

#include <rte_config.h>
#include <rte_eal.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_memory.h>
#include <rte_version.h>

/* Inline functions of DPDK, each called once a burst. */
uint16_t sg_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n);
uint16_t sg_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n);
uint16_t sg_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n);
int sg_tx_done_cleanup(uint16_t port, uint16_t queue);
int sg_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned n);
void sg_free_bulk(struct rte_mbuf **mbufs, unsigned n);
void sg_raw_free(struct rte_mbuf *mbuf);
int sg_errno(void);

/* Macros with values that bindgen cannot read as macros. */
static const uint64_t SG_TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t SG_TX_UDP_CKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
static const uint64_t SG_TX_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t SG_TX_IPV6 = RTE_MBUF_F_TX_IPV6;
static const uint64_t SG_TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;
static const uint64_t SG_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t SG_EXTERNAL = RTE_MBUF_F_EXTERNAL;
static const uint64_t SG_RX_L4_MASK = RTE_MBUF_F_RX_L4_CKSUM_MASK;
static const uint64_t SG_RX_L4_BAD = RTE_MBUF_F_RX_L4_CKSUM_BAD;
static const uint64_t SG_RX_L4_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
static const uint64_t SG_RX_L4_NONE = RTE_MBUF_F_RX_L4_CKSUM_NONE;
static const uint64_t SG_OFFLOAD_RX_CHECKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t SG_OFFLOAD_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t SG_OFFLOAD_TX_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t SG_OFFLOAD_TX_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t SG_OFFLOAD_TX_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t SG_OFFLOAD_TX_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t SG_OFFLOAD_TX_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t SG_OFFLOAD_TX_FAST_FREE = RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
static const uint64_t SG_RSS_WANTED = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP | RTE_ETH_RSS_SCTP;
static const uint32_t SG_PINNED_EXTBUF = RTE_PKTMBUF_POOL_F_PINNED_EXT_BUF;
static const uint32_t SG_DEV_INTR_RMV = RTE_ETH_DEV_INTR_RMV;
static const uint32_t SG_DEV_INTR_LSC = RTE_ETH_DEV_INTR_LSC;

#endif
