/* DPDK's inline functions as functions, and its macros as constants: all that bindings cannot carry over. */
#include "shim.h"

uint16_t sg_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n)
{
    return rte_eth_rx_burst(port, queue, mbufs, n);
}

uint16_t sg_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n)
{
    return rte_eth_tx_burst(port, queue, mbufs, n);
}

uint16_t sg_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n)
{
    return rte_eth_tx_prepare(port, queue, mbufs, n);
}

int sg_tx_done_cleanup(uint16_t port, uint16_t queue)
{
    return rte_eth_tx_done_cleanup(port, queue, 0);
}

int sg_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned n)
{
    return rte_pktmbuf_alloc_bulk(pool, mbufs, n);
}

void sg_free_bulk(struct rte_mbuf **mbufs, unsigned n)
{
    rte_pktmbuf_free_bulk(mbufs, n);
}

void sg_raw_free(struct rte_mbuf *mbuf)
{
    rte_mbuf_raw_free(mbuf);
}

int sg_errno(void)
{
    return rte_errno;
}
