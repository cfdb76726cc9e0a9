//! Compiles the generator's XDP program with clang; without clang the committed object is used.
//!
//! To renew the committed object after a change of `bpf/`: `SLUICE_BPF_COMMIT=1 cargo build -p sluice-livegen`. The
//! headers in `bpf/` are self-contained and no path is recorded, so the same clang gives the same bytes anywhere.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const SOURCE: &str = "bpf/livegen.bpf.c";
const HEADER: &str = "bpf/kernel.h";
const COMMITTED: &str = "bpf/livegen.bpf.o";
const DIGEST: &str = "bpf/livegen.bpf.digest";

fn main() {
    for path in [SOURCE, HEADER, COMMITTED, DIGEST, "build.rs"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    println!("cargo:rerun-if-env-changed=SLUICE_BPF_COMMIT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("livegen.bpf.o");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    match compile(&clang, &out) {
        Ok(()) => {}
        Err(why) => {
            println!("cargo:warning={clang}: {why}; using the committed {COMMITTED} (apt install clang to build it)");
            fs::copy(COMMITTED, &out).unwrap_or_else(|e| panic!("neither clang nor {COMMITTED}: {e}"));
        }
    }
    if env::var_os("SLUICE_BPF_COMMIT").is_some() {
        fs::copy(&out, COMMITTED).expect("bpf/ is writable");
        // BTF is what the loader needs; DWARF only makes the file large.
        let stripped = Command::new("llvm-strip").args(["-g", COMMITTED]).status();
        assert!(stripped.is_ok_and(|s| s.success()), "llvm-strip is needed to renew {COMMITTED}");
        fs::write(DIGEST, format!("{:016x}\n", digest())).expect("bpf/ is writable");
    }
}

fn compile(clang: &str, out: &Path) -> Result<(), String> {
    let output = Command::new(clang)
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v2", "-Wall", "-Wextra", "-Werror"])
        .args(["-fdebug-compilation-dir=.", "-c", SOURCE, "-o"])
        .arg(out)
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).lines().take(3).collect::<Vec<_>>().join(" "))
    }
}

/// FNV-1a over the sources: tells a test that the committed object was made from them.
fn digest() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for path in [HEADER, SOURCE] {
        for byte in fs::read(path).expect("sources are there") {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    hash
}
