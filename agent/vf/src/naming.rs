//! Devices that somebody else has allocated to this process or a pod, by the names that device plugins and DRA drivers use.
//!
//! - SR-IOV network device plugin: `PCIDEVICE_<PREFIX>_<RESOURCE>` holds PCI addresses with commas between them; `…_INFO` beside it
//!   holds JSON by address. The name is the resource's with `.`, `/` and `-` as `_`, in capitals.
//! - Device plugins through Multus: `deviceID` of the network configuration, or of its `runtimeConfig`.
//! - DRA: device metadata files (`metadata.resource.k8s.io`), `resourceclaims/CLAIM/REQUEST/DRIVER-metadata.json` below
//!   [`DRA`]; attributes `resource.kubernetes.io/pciBusID`, `resource.kubernetes.io/numaNode`, `k8s.cni.cncf.io/deviceID`,
//!   `k8s.cni.cncf.io/resourceName`.

use serde::Deserialize;
use serde_json::Value;
use sluice_machine::pci::is_address;
use std::collections::BTreeMap;
use std::path::Path;

/// Where device metadata is mounted in a container.
pub const DRA: &str = "/var/run/kubernetes.io/dra-device-attributes";
/// Attributes that hold a PCI address, the standard one first.
const ADDRESSES: [&str; 2] = ["resource.kubernetes.io/pciBusID", "k8s.cni.cncf.io/deviceID"];
const RESOURCE: &str = "k8s.cni.cncf.io/resourceName";
const NODE: &str = "resource.kubernetes.io/numaNode";

/// A device that is ours by allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Its PCI address.
    pub address: String,
    /// The resource as `vendor.com/name`, or the variable's name where only that is known.
    pub resource: String,
    /// Its NUMA node, where it was told.
    pub node: Option<u32>,
    /// Who told: a variable or a file.
    pub told_by: String,
}

/// The variable of a resource: `intel.com/sriov-net` is `PCIDEVICE_INTEL_COM_SRIOV_NET`.
pub fn variable(resource: &str) -> String {
    let word: String =
        resource.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    format!("PCIDEVICE_{word}")
}

/// Whether an allocation is of a resource.
pub fn is_of(allocated: &Allocated, resource: &str) -> bool {
    allocated.resource == resource || allocated.resource == variable(resource)
}

/// What the environment allocates, and what of it cannot be read.
pub fn from_environment(variables: impl IntoIterator<Item = (String, String)>) -> (Vec<Allocated>, Vec<String>) {
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for (name, value) in variables {
        if !name.starts_with("PCIDEVICE_") || name.ends_with("_INFO") {
            continue;
        }
        for address in value.split(',').map(str::trim).filter(|a| !a.is_empty()) {
            match is_address(address) {
                true => all.push(Allocated {
                    address: address.to_owned(),
                    resource: name.clone(),
                    node: None,
                    told_by: name.clone(),
                }),
                false => problems.push(format!("{name}: {address:?} is no PCI address")),
            }
        }
    }
    all.sort_by(|a, b| a.address.cmp(&b.address));
    (all, problems)
}

/// The device that a network configuration names, from Multus.
pub fn from_configuration(config: &Value) -> Option<&str> {
    [&config["deviceID"], &config["runtimeConfig"]["deviceID"]].into_iter().find_map(Value::as_str)
}

#[derive(Deserialize)]
struct Metadata {
    kind: String,
    #[serde(rename = "apiVersion")]
    version: String,
    #[serde(default)]
    requests: Vec<Request>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    name: String,
    #[serde(default)]
    driver: String,
    #[serde(default)]
    attributes: BTreeMap<String, Value>,
}

/// Devices of a metadata file: the first document in it that we know. An empty file speaks of no device yet.
fn metadata(text: &str, file: &str) -> Result<Vec<Allocated>, String> {
    let documents: Vec<Value> = serde_json::Deserializer::from_str(text)
        .into_iter::<Value>()
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{file}: {e}"))?;
    let ours = |m: &Metadata| m.kind == "DeviceMetadata" && m.version.starts_with("metadata.resource.k8s.io/");
    let known = documents.into_iter().filter_map(|d| serde_json::from_value::<Metadata>(d).ok()).find(ours);
    let mut all = Vec::new();
    for device in known.into_iter().flat_map(|m| m.requests).flat_map(|r| r.devices) {
        let word = |key: &str| device.attributes.get(key).and_then(|a| a["string"].as_str());
        let Some(address) = ADDRESSES.iter().find_map(|key| word(key)).filter(|a| is_address(a)) else { continue };
        all.push(Allocated {
            address: address.to_owned(),
            resource: word(RESOURCE).map_or_else(|| format!("{}/{}", device.driver, device.name), str::to_owned),
            node: device.attributes.get(NODE).and_then(|a| a["int"].as_u64()).and_then(|n| u32::try_from(n).ok()),
            told_by: file.to_owned(),
        });
    }
    Ok(all)
}

/// What DRA allocates, and what of it cannot be read. `folder` is [`DRA`], or a test's.
pub fn from_dra(folder: &Path) -> (Vec<Allocated>, Vec<String>) {
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        let entries = match std::fs::read_dir(&at) {
            Ok(entries) => entries.flatten(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => {
                problems.push(format!("{}: {e}", at.display()));
                continue;
            }
        };
        for path in entries.map(|e| e.path()) {
            let file = path.display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if file.ends_with("-metadata.json") {
                let read = std::fs::read_to_string(&path).map_err(|e| format!("{file}: {e}"));
                match read.and_then(|text| metadata(&text, &file)) {
                    Ok(found) => all.extend(found),
                    Err(problem) => problems.push(problem),
                }
            }
        }
    }
    all.sort_by(|a, b| (&a.address, &a.resource).cmp(&(&b.address, &b.resource)));
    all.dedup_by(|a, b| a.address == b.address && a.resource == b.resource);
    (all, problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_plugins_variables_are_read_and_their_info_is_not_an_address() {
        let variables = [
            ("PCIDEVICE_INTEL_COM_SRIOV_NET", "0000:18:01.1,0000:18:01.0"),
            ("PCIDEVICE_INTEL_COM_SRIOV_NET_INFO", "{\"0000:18:01.0\":{\"generic\":{\"deviceID\":\"0000:18:01.0\"}}}"),
            ("PCIDEVICE_X", "eth0"),
            ("PATH", "/bin"),
        ];
        let (found, problems) = from_environment(variables.map(|(a, b)| (a.to_owned(), b.to_owned())));
        let addresses: Vec<&str> = found.iter().map(|a| a.address.as_str()).collect();
        assert_eq!(addresses, ["0000:18:01.0", "0000:18:01.1"]);
        assert!(is_of(&found[0], "intel.com/sriov-net") && is_of(&found[0], "intel.com/sriov_net"));
        assert!(!is_of(&found[0], "intel.com/sriov"));
        assert_eq!(problems, ["PCIDEVICE_X: \"eth0\" is no PCI address"]);
    }

    #[test]
    fn multus_hands_the_device_over_in_two_places() {
        assert_eq!(from_configuration(&json!({"deviceID": "0000:18:01.0"})), Some("0000:18:01.0"));
        assert_eq!(from_configuration(&json!({"runtimeConfig": {"deviceID": "0000:18:01.1"}})), Some("0000:18:01.1"));
        assert_eq!(from_configuration(&json!({})), None);
    }

    #[test]
    fn dra_metadata_is_read_from_the_first_document_that_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let device = json!({"driver": "sriovnetwork.k8snetworkplumbingwg.io", "pool": "n1", "name": "vf-0", "attributes": {
            "resource.kubernetes.io/pciBusID": {"string": "0000:3b:00.2"},
            "k8s.cni.cncf.io/resourceName": {"string": "nvidia.com/mlx5"},
            "resource.kubernetes.io/numaNode": {"int": 1},
            "vendor.com/other": {"bool": true},
        }});
        let new =
            json!({"kind": "DeviceMetadata", "apiVersion": "metadata.resource.k8s.io/v9", "requests": "another shape"});
        let old = json!({"kind": "DeviceMetadata", "apiVersion": "metadata.resource.k8s.io/v1alpha1",
            "requests": [{"name": "nic", "devices": [device, {"name": "gpu", "attributes": {}}]}]});
        let at = folder.path().join("resourceclaims/nics/nic");
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join("a-metadata.json"), format!("{new}\n{old}\n")).unwrap();
        std::fs::write(at.join("later-metadata.json"), "").unwrap();
        let (found, problems) = from_dra(folder.path());
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!((found.len(), found[0].address.as_str(), found[0].node), (1, "0000:3b:00.2", Some(1)));
        assert!(is_of(&found[0], "nvidia.com/mlx5"));
        std::fs::write(at.join("b-metadata.json"), "{").unwrap();
        assert_eq!(from_dra(folder.path()).1.len(), 1);
        assert_eq!(from_dra(&folder.path().join("nothing")), (vec![], vec![]));
    }
}
