//! A stand-in for the kernel: it does to a fixture tree what the kernel does to sysfs and procfs when they are written to.
#![allow(dead_code, reason = "each test uses a part")]

use hugepage_setup::apply::Kernel;
use hugepage_setup::step::Size;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Gives at most `most` pages a node, makes VFs, mounts by table, loads `vfio-pci`.
pub struct Fixture<'a> {
    pub root: &'a Path,
    pub most: u64,
}

fn read(file: &Path) -> u64 {
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

impl Fixture<'_> {
    fn pages(&self, file: &Path, pages: u64) -> io::Result<()> {
        let free = file.with_file_name("free_hugepages");
        let used = read(file) - read(&free);
        let pages = pages.min(self.most.max(read(file))).max(used);
        fs::write(file, format!("{pages}\n"))?;
        fs::write(free, format!("{}\n", pages - used))
    }

    /// VFs of a PF: no number but 0 may follow another.
    fn vfs(&self, file: &Path, count: u64) -> io::Result<()> {
        let pf = fs::canonicalize(file.parent().unwrap())?;
        if count > read(&pf.join("sriov_totalvfs")) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if count > 0 && read(file) > 0 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let address = pf.file_name().unwrap().to_str().unwrap().to_owned();
        let bus = address.rsplit_once(':').unwrap().0;
        let name = |n: u64| format!("{bus}:10.{n}");
        let devices: PathBuf = self.root.join("sys/bus/pci/devices");
        for n in 0..read(file) {
            fs::remove_file(pf.join(format!("virtfn{n}")))?;
            fs::remove_dir_all(pf.parent().unwrap().join(name(n)))?;
            fs::remove_file(devices.join(name(n)))?;
        }
        for n in 0..count {
            let vf = pf.parent().unwrap().join(name(n));
            fs::create_dir_all(vf.join(format!("net/vf{n}")))?;
            for (file, text) in [("class", "0x020000"), ("vendor", "0x15b3"), ("device", "0x1018"), ("numa_node", "1")]
            {
                fs::write(vf.join(file), text.to_owned() + "\n")?;
            }
            fs::write(vf.join(format!("net/vf{n}/flags")), "0x1002\n")?;
            symlink(&pf, vf.join("physfn"))?;
            symlink(self.root.join("sys/bus/pci/drivers/mlx5_core"), vf.join("driver"))?;
            symlink(&vf, pf.join(format!("virtfn{n}")))?;
            symlink(&vf, devices.join(name(n)))?;
        }
        fs::write(file, format!("{count}\n"))
    }
}

impl Kernel for Fixture<'_> {
    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        match file.file_name().unwrap().to_str().unwrap() {
            "nr_hugepages" => self.pages(file, value.parse().unwrap()),
            "sriov_numvfs" => self.vfs(file, value.parse().unwrap()),
            "ip_local_reserved_ports" => fs::write(file, format!("{value}\n")),
            other => panic!("nobody writes {other}"),
        }
    }

    fn mount(&self, target: &Path, size: Size) -> io::Result<()> {
        let target = target.strip_prefix(self.root).unwrap().display();
        let line = format!("none /{target} hugetlbfs rw,pagesize={} 0 0\n", size.name());
        let file = self.root.join("proc/mounts");
        fs::write(&file, fs::read_to_string(&file)? + &line)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        let file = self.root.join("proc/mounts");
        let target = format!(" /{} ", target.strip_prefix(self.root).unwrap().display());
        let lines = fs::read_to_string(&file)?;
        fs::write(file, lines.lines().filter(|l| !l.contains(&target)).map(|l| format!("{l}\n")).collect::<String>())
    }

    fn module(&self, root: &Path, module: &str, unload: bool) -> io::Result<()> {
        let driver = root.join("sys/bus/pci/drivers").join(module);
        if unload { fs::remove_dir_all(driver) } else { fs::create_dir_all(driver) }
    }
}
