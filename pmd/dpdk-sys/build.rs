//! With the feature `dpdk`: bindings of the distribution's libdpdk, and the shim for its inline functions. Without: nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shim");
    #[cfg(feature = "dpdk")]
    dpdk::build();
}

#[cfg(feature = "dpdk")]
mod dpdk {
    use std::env;
    use std::path::PathBuf;

    /// First version whose structures and names this crate was written for.
    const OLDEST: &str = "22.11";

    /// Functions of the library that `sluice-dpdk` calls.
    const FUNCTIONS: &[&str] = &[
        "rte_dev_dma_map",
        "rte_dev_dma_unmap",
        "rte_dev_probe",
        "rte_dev_remove",
        "rte_eal_init",
        "rte_eal_iova_mode",
        "rte_eth_allmulticast_enable",
        "rte_eth_allmulticast_disable",
        "rte_eth_dev_adjust_nb_rx_tx_desc",
        "rte_eth_dev_callback_register",
        "rte_eth_dev_callback_unregister",
        "rte_eth_dev_close",
        "rte_eth_dev_configure",
        "rte_eth_dev_get_mtu",
        "rte_eth_dev_get_port_by_name",
        "rte_eth_dev_info_get",
        "rte_eth_dev_is_removed",
        "rte_eth_dev_is_valid_port",
        "rte_eth_dev_rss_hash_update",
        "rte_eth_dev_rx_intr_ctl_q_get_fd",
        "rte_eth_dev_rx_intr_disable",
        "rte_eth_dev_rx_intr_enable",
        "rte_eth_dev_set_mtu",
        "rte_eth_dev_socket_id",
        "rte_eth_dev_start",
        "rte_eth_dev_stop",
        "rte_eth_iterator_cleanup",
        "rte_eth_iterator_init",
        "rte_eth_iterator_next",
        "rte_eth_link_get_nowait",
        "rte_eth_macaddr_get",
        "rte_eth_promiscuous_disable",
        "rte_eth_promiscuous_enable",
        "rte_eth_rx_queue_setup",
        "rte_eth_stats_get",
        "rte_eth_tx_queue_setup",
        "rte_eth_xstats_get",
        "rte_eth_xstats_get_names",
        "rte_extmem_register",
        "rte_log_set_global_level",
        "rte_mempool_create_empty",
        "rte_mempool_free",
        "rte_mempool_obj_iter",
        "rte_mempool_populate_default",
        "rte_mempool_populate_iova",
        "rte_mempool_register_ops",
        "rte_mempool_set_ops_byname",
        "rte_openlog_stream",
        "rte_pktmbuf_init",
        "rte_pktmbuf_pool_create",
        "rte_pktmbuf_pool_init",
        "rte_strerror",
        "rte_version",
    ];

    /// Structures that have both a packed and an aligned attribute, which Rust cannot express; nothing here uses them.
    const OPAQUE: &[&str] = &["rte_arp_ipv4", "rte_arp_hdr", "rte_l2tpv2_combined_msg_hdr", "rte_gtp_psc_generic_hdr"];

    pub fn build() {
        let library = pkg_config::Config::new().atleast_version(OLDEST).probe("libdpdk").unwrap_or_else(|why| {
            panic!(
                "\n\nThe feature `dpdk` needs DPDK {OLDEST} or newer with its headers, and pkg-config found none.\n\
                 On Debian or Ubuntu:  apt install libdpdk-dev libclang-dev pkg-config\n\
                 Elsewhere: install DPDK and let PKG_CONFIG_PATH name the folder of its libdpdk.pc.\n\n{why}\n"
            )
        });
        let flags = flags(&library);
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

        let mut bindings = bindgen::Builder::default()
            .header("shim/shim.h")
            .clang_args(&flags)
            .use_core()
            .layout_tests(false)
            .generate_comments(false)
            .merge_extern_blocks(true)
            .derive_default(true)
            .prepend_enum_name(false)
            .allowlist_function("sg_.*")
            .allowlist_type("rte_mbuf|rte_mempool|rte_mempool_ops|rte_mbuf_ext_shared_info|rte_pktmbuf_pool_private")
            .allowlist_type("rte_eth_dev_info|rte_eth_conf|rte_eth_stats|rte_eth_xstat|rte_eth_xstat_name|rte_eth_link")
            .allowlist_var("SG_.*|RTE_ETH_NAME_MAX_LEN|RTE_MEMPOOL_OPS_NAMESIZE|RTE_MAX_ETHPORTS");
        for function in FUNCTIONS {
            bindings = bindings.allowlist_function(function);
        }
        for opaque in OPAQUE {
            bindings = bindings.opaque_type(opaque);
        }
        let bindings = bindings.generate().unwrap_or_else(|why| {
            panic!(
                "\n\nbindgen cannot read DPDK's headers: {why}\n\
                 It needs libclang: apt install libclang-dev. Where several LLVMs are installed, the newest libclang may meet \
                 the headers of an older clang: set LIBCLANG_PATH, for example to /usr/lib/llvm-14/lib.\n"
            )
        });
        bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable");

        let mut shim = cc::Build::new();
        shim.file("shim/shim.c").opt_level(3).warnings(false);
        for flag in &flags {
            shim.flag(flag);
        }
        shim.compile("sluice_dpdk_shim");
    }

    /// What pkg-config says that the compiler needs. The crate of that name keeps folders and macros apart and drops the
    /// rest, so the flags that DPDK cannot do without are named: its configuration, and its least processor.
    fn flags(library: &pkg_config::Library) -> Vec<String> {
        let mut flags: Vec<String> = library.include_paths.iter().map(|path| format!("-I{}", path.display())).collect();
        flags.extend(["-include".to_owned(), "rte_config.h".to_owned()]);
        flags.push(machine());
        flags
    }

    fn machine() -> String {
        let said = std::process::Command::new("pkg-config").args(["--cflags-only-other", "libdpdk"]).output();
        let said = said.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let named = said.split_whitespace().find(|flag| flag.starts_with("-march=")).map(str::to_owned);
        let usual =
            if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("aarch64") { "armv8-a+crc" } else { "corei7" };
        named.unwrap_or_else(|| format!("-march={usual}"))
    }
}
