//! `fake-apiserver`: the test's API server as a process, for tests that drive `sluiced` from outside.

use clap::Parser;
use sluice_fake_apiserver::cluster::{Size, objects};
use sluice_fake_apiserver::{Fake, Identity, World};
use std::net::SocketAddr;
use std::path::PathBuf;

/// An API server for tests; `POST /fake/apply`, `/fake/delete`, `/fake/faults`, `/fake/compact` change what it serves.
#[derive(Parser)]
struct Cli {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// JSON file with a list of objects to begin with.
    #[arg(long)]
    objects: Option<PathBuf>,
    /// Services to make up.
    #[arg(long, default_value_t = 0)]
    services: usize,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Nodes to make up.
    #[arg(long, default_value_t = 0)]
    nodes: usize,
    /// A Pod object for every endpoint.
    #[arg(long)]
    pods: bool,
    /// Speak HTTPS, and write the authority's certificate to this file.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// Bearer token that is let in; several may be named. Without any, everybody is.
    #[arg(long)]
    token: Vec<String>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    let mut world = World::default();
    if cli.services > 0 || cli.nodes > 0 {
        let size = Size { nodes: cli.nodes, services: cli.services, endpoints: cli.endpoints, pods: cli.pods };
        for object in objects(size) {
            world.apply(object);
        }
    }
    if let Some(path) = cli.objects {
        let list: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        for object in list {
            world.apply(object);
        }
    }
    // Nobody watches yet: what was made before the start is no news.
    world.log.clear();
    world.floor = world.version;
    world.faults.tokens = cli.token;
    let identity = match cli.ca_file {
        Some(path) => {
            let address = cli.listen.ip().to_string();
            let identity = Identity::new(&[&address, "kubernetes.default.svc"])?;
            std::fs::write(path, identity.authority())?;
            Some(identity)
        }
        None => None,
    };
    let fake = Fake::start_at(cli.listen, world, identity)?;
    println!("listening on {}", fake.address());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        end.recv().await;
        Ok::<(), std::io::Error>(())
    })?;
    Ok(())
}
