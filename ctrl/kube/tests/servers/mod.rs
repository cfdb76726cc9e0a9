//! API servers that tests can have: the fake, the one that `KUBECONFIG` names, and a `kube-apiserver` with its `etcd` from the PATH.

use rcgen::KeyPair;
use serde_json::{Value, json};
use sluice_fake_apiserver::{Fake, Identity};
use sluice_kube::{ApiError, Connection};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TOKEN: &str = "of-a-test";

/// An API server, for as long as the value lives.
pub struct Server {
    /// How messages call it.
    pub name: &'static str,
    pub kubeconfig: PathBuf,
    runtime: tokio::runtime::Runtime,
    connection: std::sync::Arc<Connection>,
    _fake: Option<Fake>,
    _programs: Vec<Program>,
    _folder: Option<tempfile::TempDir>,
}

/// Every server there is; those that are not are said, past the test runner, which swallows what passing tests print.
pub fn all() -> Vec<Server> {
    let mut all = vec![fake()];
    let aloud = |text: &str| drop(writeln!(std::io::stderr(), "     {text}"));
    match std::env::var_os("SLUICE_TEST_KUBECONFIG").or_else(|| std::env::var_os("KUBECONFIG")) {
        Some(path) => all.push(Server::new("KUBECONFIG", path.into(), None, Vec::new(), None)),
        None => aloud("NOT RUN against a cluster: KUBECONFIG names none that tests may use"),
    }
    match (on_path("etcd"), on_path("kube-apiserver")) {
        (Some(etcd), Some(apiserver)) => all.push(real(&etcd, &apiserver)),
        (etcd, apiserver) => {
            let here = |name, found: &Option<PathBuf>| found.is_none().then_some(name);
            let absent: Vec<_> =
                [here("etcd", &etcd), here("kube-apiserver", &apiserver)].into_iter().flatten().collect();
            aloud(&format!("NOT RUN against kube-apiserver: not on the PATH: {}", absent.join(", ")));
        }
    }
    all
}

impl Server {
    fn new(
        name: &'static str,
        kubeconfig: PathBuf,
        fake: Option<Fake>,
        programs: Vec<Program>,
        folder: Option<tempfile::TempDir>,
    ) -> Server {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connection = Connection::new(Some(kubeconfig.clone()));
        Server { name, kubeconfig, runtime, connection, _fake: fake, _programs: programs, _folder: folder }
    }

    /// A request; the answer's object.
    pub fn ask(&self, method: &str, path: &str, content: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let request = http::Request::builder().method(method).uri(path).header("Content-Type", content);
        let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
        self.runtime.block_on(self.connection.ask(Ok(request.body(body).unwrap())))
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.ask("GET", path, "application/json", None).ok()
    }

    /// Makes an object in its collection.
    pub fn create(&self, collection: &str, object: &Value) {
        self.ask("POST", collection, "application/json", Some(object)).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// Merges a patch into an object.
    pub fn patch(&self, path: &str, patch: &Value) {
        let kind = "application/merge-patch+json";
        self.ask("PATCH", path, kind, Some(patch)).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    pub fn delete(&self, path: &str) -> Result<Value, ApiError> {
        self.ask("DELETE", path, "application/json", None)
    }
}

fn fake() -> Server {
    let fake = Fake::start_tls(Identity::new(&["127.0.0.1"]).unwrap()).unwrap();
    fake.with(|world| world.faults.tokens = vec![TOKEN.to_owned()]);
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = fake.kubeconfig(folder.path(), Some(TOKEN)).unwrap();
    Server::new("the tests' own", kubeconfig, Some(fake), Vec::new(), Some(folder))
}

/// A process that ends with the test, whatever ends that.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn start(program: &Path, folder: &Path, arguments: &[String]) -> Program {
    let name = program.file_name().unwrap().to_string_lossy();
    let log = std::fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    let errors = log.try_clone().unwrap();
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
    Program(child.unwrap_or_else(|e| panic!("{}: {e}", program.display())))
}

/// `kube-apiserver` on an `etcd` of its own, with nothing else of a control plane.
fn real(etcd: &Path, apiserver: &Path) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (store, peer, port) = (free_port(), free_port(), free_port());
    let store = format!("http://127.0.0.1:{store}");
    let etcd = start(
        etcd,
        folder.path(),
        &[
            format!("--data-dir={}", at("etcd")),
            format!("--listen-client-urls={store}"),
            format!("--advertise-client-urls={store}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        ],
    );
    // Tokens of service accounts are signed with it; none is asked for here.
    std::fs::write(at("account.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    std::fs::write(at("tokens.csv"), format!("{TOKEN},tester,1,system:masters\n")).unwrap();
    let apiserver = start(
        apiserver,
        folder.path(),
        &[
            format!("--etcd-servers={store}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", at("certs")),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", at("account.key")),
            format!("--service-account-signing-key-file={}", at("account.key")),
            format!("--token-auth-file={}", at("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ],
    );
    std::fs::write(at("token"), TOKEN).unwrap();
    // The certificate that it makes for itself is also its authority.
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "real",
        "clusters": [{"name": "real", "cluster": {
            "server": format!("https://localhost:{port}"), "certificate-authority": at("certs/apiserver.crt")}}],
        "users": [{"name": "real", "user": {"tokenFile": at("token")}}],
        "contexts": [{"name": "real", "context": {"cluster": "real", "user": "real", "namespace": "default"}}],
    });
    std::fs::write(at("kubeconfig"), config.to_string()).unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let server = Server::new("kube-apiserver", kubeconfig, None, vec![apiserver, etcd], Some(folder));
    let until = Instant::now() + Duration::from_secs(120);
    while server.get("/api/v1/namespaces/default").is_none() {
        let log = std::fs::read_to_string(server.kubeconfig.with_file_name("kube-apiserver.log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(20).collect();
        assert!(
            Instant::now() < until,
            "kube-apiserver does not answer; its last lines, backwards:\n{}",
            last.join("\n")
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    server
}
