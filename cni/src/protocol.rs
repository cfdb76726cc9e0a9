//! What the shim asks of the agent and what the agent answers: the bodies of `POST /v1/cni/{add,del,check,gc,status}`.
//!
//! Every verb sends one [`CniRequest`]. The agent answers 200 with an [`AddResult`] to ADD, 200 with `{}` or 204 to the
//! other verbs, and 4xx or 5xx with an [`ErrorBody`] whose code the shim hands to the runtime.
//! Source: CNI specification 1.1.0, sections 2 (verbs), 5 (result types) and the table of error codes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::prefix::Prefix;
use crate::version::CniVersion;

/// The verbs that reach the agent; VERSION is answered by the shim alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Give a pod its interface and addresses. May be repeated.
    Add,
    /// Take them away again. Succeeds when there is nothing to take away.
    Del,
    /// Is everything that ADD made still there?
    Check,
    /// Remove every attachment that the runtime no longer lists.
    Gc,
    /// Could an ADD be served now?
    Status,
}

impl Verb {
    /// The path that the agent serves this verb on.
    pub const fn path(self) -> &'static str {
        match self {
            Verb::Add => "/v1/cni/add",
            Verb::Del => "/v1/cni/del",
            Verb::Check => "/v1/cni/check",
            Verb::Gc => "/v1/cni/gc",
            Verb::Status => "/v1/cni/status",
        }
    }

    /// The first version of the specification that has this verb.
    pub const fn since(self) -> CniVersion {
        match self {
            Verb::Add | Verb::Del | Verb::Check => CniVersion::V0_4_0,
            Verb::Gc | Verb::Status => CniVersion::V1_1_0,
        }
    }
}

/// One request of the shim, the same shape for every verb; strings are empty where the verb has no such thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CniRequest {
    /// The version of the specification that the runtime speaks.
    pub cni_version: CniVersion,
    /// `CNI_CONTAINERID`: the sandbox, unique on a node for all time. Empty for GC and STATUS.
    #[serde(default)]
    pub container_id: String,
    /// `CNI_NETNS`: path of the pod's network namespace. Empty for GC and STATUS, and for a DEL after the namespace went.
    #[serde(default)]
    pub netns: String,
    /// `CNI_IFNAME`: the interface's name inside the pod. Empty for GC and STATUS.
    #[serde(default)]
    pub ifname: String,
    /// `CNI_ARGS`, split: `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID` and whatever else the runtime sends.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// The network configuration as it came on standard input, unknown fields, `prevResult` and `runtimeConfig` included.
    #[serde(default)]
    pub config: Value,
}

/// The pod that a request is about, from `CNI_ARGS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodArgs<'a> {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: &'a str,
    /// `K8S_POD_NAME`.
    pub name: &'a str,
    /// `K8S_POD_UID`, which older runtimes do not send.
    pub uid: Option<&'a str>,
}

/// One attachment: a sandbox and its interface. The key under which an agent remembers what ADD made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl CniRequest {
    /// The pod named in `CNI_ARGS`, or none where the runtime named none (or an empty name).
    pub fn pod(&self) -> Option<PodArgs<'_>> {
        let arg = |key: &str| self.args.get(key).map(String::as_str).filter(|value| !value.is_empty());
        Some(PodArgs { namespace: arg("K8S_POD_NAMESPACE")?, name: arg("K8S_POD_NAME")?, uid: arg("K8S_POD_UID") })
    }

    /// The attachment that ADD, DEL and CHECK are about.
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// What GC must keep: the configuration's `cni.dev/valid-attachments`. None where it is absent or no list of
    /// attachments; then nothing may be collected.
    pub fn valid_attachments(&self) -> Option<Vec<Attachment>> {
        let listed = self.config.get("cni.dev/valid-attachments")?;
        Vec::deserialize(listed).ok()
    }
}

/// What ADD made, in the form of CNI 1.1.0; [`AddResult::to_json`] writes it for older runtimes too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddResult {
    /// The interfaces made, host side (no `sandbox`) and pod side.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The pod's addresses, at most one per family.
    #[serde(default)]
    pub ips: Vec<IpConfig>,
    /// The routes set in the pod.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Name resolution, which Sluicegate leaves to kubelet.
    #[serde(default)]
    pub dns: Dns,
}

/// An interface of an [`AddResult`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The interface's name where it lives.
    pub name: String,
    /// Its MAC address, lower case with colons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace's path for an interface inside the pod; none on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Path of a vhost-user or memif socket (since 1.1.0).
    #[serde(default, rename = "socketPath", skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// PCI address of a virtual function (since 1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address of an [`AddResult`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into [`AddResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
    /// The address with its prefix length: `/32` or `/128`, pods are reached by route.
    pub address: Prefix,
    /// The default gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route of an [`AddResult`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: Prefix,
    /// The next hop; none for a route on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The route's MTU in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Name resolution of an [`AddResult`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains to search.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl AddResult {
    /// The result as the runtime's version of the specification writes it: 0.4.0 names each address's family, and
    /// nothing before 1.1.0 has an interface's MTU, socket or PCI address, or a route's MTU.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut out = json!(self);
        out["cniVersion"] = json!(version);
        if version < CniVersion::V1_1_0 {
            for interface in objects(&mut out["interfaces"]) {
                for newer in ["mtu", "socketPath", "pciID"] {
                    interface.remove(newer);
                }
            }
            for route in objects(&mut out["routes"]) {
                route.remove("mtu");
            }
        }
        if version < CniVersion::V1_0_0 {
            for (ip, object) in self.ips.iter().zip(objects(&mut out["ips"])) {
                let family = if ip.address.address().is_ipv4() { "4" } else { "6" };
                object.insert("version".to_owned(), json!(family));
            }
        }
        out
    }
}

fn objects(list: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut)
}

/// An error code of the CNI specification, or of this plugin from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// The runtime's version of the specification is not spoken, or does not have the verb.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A field of the configuration is not supported; the message names it.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is not known; the runtime need not DEL it.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// An environment variable is missing or wrong; the message names it.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO: Self = Self(5);
    /// Something that should have been JSON was not.
    pub const DECODE: Self = Self(6);
    /// The network configuration does not hold.
    pub const INVALID_CONFIG: Self = Self(7);
    /// It cannot be done now but may be soon: the runtime should try again.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: an ADD could not be served.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: an ADD could not be served, and pods that run already may be cut off.
    pub const NOT_AVAILABLE_PODS_LIMITED: Self = Self(51);
    /// The agent refused without saying why in a form that the shim understands.
    pub const AGENT_REFUSED: Self = Self(100);
}

/// What the agent sends with a 4xx or 5xx answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The code that the runtime gets to see.
    pub code: ErrorCode,
    /// One sentence that says what is wrong.
    pub msg: String,
    /// What to do about it, or the error beneath.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl ErrorBody {
    /// An error with a code, what is wrong and what lies beneath (may be empty).
    pub fn new(code: ErrorCode, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// The error as the specification wants it on standard output.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut out = json!(self);
        out["cniVersion"] = json!(version);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        AddResult {
            interfaces: vec![
                Interface { name: "sg1234".into(), mtu: Some(1450), ..Interface::default() },
                Interface {
                    name: "eth0".into(),
                    mac: Some("02:00:0a:f4:01:02".into()),
                    sandbox: Some("/run/netns/a".into()),
                    pci_id: Some("0000:01:00.1".into()),
                    ..Interface::default()
                },
            ],
            ips: ["10.244.1.2/32", "fd00:10:244:1::2/128"]
                .map(|a| IpConfig { interface: Some(1), address: a.parse().unwrap(), gateway: None })
                .to_vec(),
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("169.254.1.1".parse().unwrap()),
                mtu: Some(1450),
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn version_0_4_0_names_the_family_of_each_address() {
        let old = result().to_json(CniVersion::V0_4_0);
        assert_eq!(old["cniVersion"], "0.4.0");
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert!(result().to_json(CniVersion::V1_0_0)["ips"][0].get("version").is_none());
    }

    #[test]
    fn only_1_1_0_has_the_newer_fields_of_interfaces_and_routes() {
        let new = result().to_json(CniVersion::V1_1_0);
        assert_eq!(new["interfaces"][0]["mtu"], 1450);
        assert_eq!(new["interfaces"][1]["pciID"], "0000:01:00.1");
        assert_eq!(new["routes"][0]["mtu"], 1450);
        for version in [CniVersion::V0_4_0, CniVersion::V1_0_0] {
            let old = result().to_json(version);
            assert!(old["interfaces"][0].get("mtu").is_none());
            assert!(old["interfaces"][1].get("pciID").is_none());
            assert!(old["routes"][0].get("mtu").is_none());
            assert_eq!(old["interfaces"][1]["sandbox"], "/run/netns/a");
        }
    }

    #[test]
    fn the_newest_form_reads_back_as_it_was() {
        let json = result().to_json(CniVersion::V1_1_0);
        assert_eq!(serde_json::from_value::<AddResult>(json).unwrap(), result());
    }

    #[test]
    fn a_request_names_its_pod_and_what_gc_keeps() {
        let request: CniRequest = serde_json::from_value(json!({
            "cni_version": "1.1.0",
            "args": {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web", "K8S_POD_UID": ""},
            "config": {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]},
        }))
        .unwrap();
        assert_eq!(request.pod(), Some(PodArgs { namespace: "shop", name: "web", uid: None }));
        let kept = request.valid_attachments().unwrap();
        assert_eq!(kept, [Attachment { container_id: "c1".into(), ifname: "eth0".into() }]);
        let without = CniRequest { config: json!({}), args: BTreeMap::new(), ..request };
        assert_eq!((without.pod(), without.valid_attachments()), (None, None));
    }

    #[test]
    fn an_error_is_printed_with_the_runtimes_version() {
        let error = ErrorBody::new(ErrorCode::TRY_AGAIN_LATER, "no pod yet", "");
        assert_eq!(error.to_json(CniVersion::V1_0_0), json!({"cniVersion": "1.0.0", "code": 11, "msg": "no pod yet"}));
    }
}
