//! What a runtime asks of ADD besides the interface: the `runtimeConfig` of the network configuration.
//!
//! Source: CNI conventions, capabilities `portMappings`, `bandwidth`, `ips` and `mac`. A value that cannot be read is an error
//! of the whole ADD: a pod that asked for a limit or an address never runs without it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_ctrl::compile::PortMapping;
use sluice_ctrl::model::Protocol;
use std::net::IpAddr;

/// Rates a pod's port is held to, in bits and bits a second; none: as fast as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress: Option<Bits>,
    /// From the pod.
    pub egress: Option<Bits>,
}

/// A rate with its burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bits {
    /// Bits a second.
    pub rate: u64,
    /// Bits at once; 0: not said.
    pub burst: u64,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Ports of the node that lead to the pod.
    pub mappings: Vec<PortMapping>,
    /// Rates.
    pub bandwidth: Bandwidth,
    /// Addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The interface's MAC.
    pub mac: Option<[u8; 6]>,
}

/// Reads a network configuration; an error names the field.
pub fn read(config: &Value) -> Result<Asked, String> {
    let asked = &config["runtimeConfig"];
    if !(asked.is_null() || asked.is_object()) {
        return Err("runtimeConfig is no object".to_owned());
    }
    Ok(Asked {
        mappings: mappings(&asked["portMappings"])?,
        bandwidth: bandwidth(&asked["bandwidth"])?,
        addresses: addresses(&asked["ips"])?,
        mac: mac(&asked["mac"])?,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

fn list<T: for<'a> Deserialize<'a>>(value: &Value, field: &str) -> Result<Vec<T>, String> {
    let list: Option<Vec<T>> = Deserialize::deserialize(value).map_err(|error| format!("{field}: {error}"))?;
    Ok(list.unwrap_or_default())
}

fn mappings(value: &Value) -> Result<Vec<PortMapping>, String> {
    let mut all = Vec::new();
    for mapping in list::<Mapping>(value, "runtimeConfig.portMappings")? {
        let wrong = |what: &str, text: &str| format!("runtimeConfig.portMappings: {what} {text:?}");
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(wrong("unknown protocol", other)),
        };
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| wrong("hostIP is no address:", text))?),
        };
        if mapping.container_port == 0 {
            return Err(wrong("containerPort is 0 for hostPort", &mapping.host_port.to_string()));
        }
        // kubelet hands over every container port; those without a port on the node have 0.
        if mapping.host_port != 0 {
            all.push(PortMapping {
                host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
                host_port: mapping.host_port,
                protocol,
                port: mapping.container_port,
            });
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rates {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

fn bandwidth(value: &Value) -> Result<Bandwidth, String> {
    let rates: Option<Rates> =
        Deserialize::deserialize(value).map_err(|error| format!("runtimeConfig.bandwidth: {error}"))?;
    let rates = rates.unwrap_or_default();
    let bits = |rate, burst| (rate != 0).then_some(Bits { rate, burst });
    Ok(Bandwidth {
        ingress: bits(rates.ingress_rate, rates.ingress_burst),
        egress: bits(rates.egress_rate, rates.egress_burst),
    })
}

fn addresses(value: &Value) -> Result<Vec<IpAddr>, String> {
    let texts = list::<String>(value, "runtimeConfig.ips")?;
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    // The conventions write a prefix length; a pod's is that of one address whatever is asked for.
    let bare = texts.iter().map(|text| text.split('/').next().unwrap_or_default());
    sluice_ctrl::ipam::addresses(bare)
        .ok_or_else(|| format!("runtimeConfig.ips: {texts:?} is not one address, or one of each family"))
}

fn mac(value: &Value) -> Result<Option<[u8; 6]>, String> {
    let wrong = || format!("runtimeConfig.mac: {value} is no MAC address of one interface");
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => text,
        _ => return Err(wrong()),
    };
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let bytes: Vec<u8> = parts.iter().filter(|p| p.len() == 2).filter_map(|p| u8::from_str_radix(p, 16).ok()).collect();
    let mac: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
    if parts.len() != 6 || mac[0] & 1 != 0 || mac == [0; 6] { Err(wrong()) } else { Ok(Some(mac)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(runtime: Value) -> Result<Asked, String> {
        read(&json!({ "name": "n", "runtimeConfig": runtime }))
    }

    #[test]
    fn what_containerd_hands_over_is_read() {
        let asked = asked(json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.11"},
                {"hostPort": 0, "containerPort": 9000, "protocol": "tcp"},
                {"hostPort": 36412, "containerPort": 36412, "protocol": "SCTP", "hostIP": "::"},
            ],
            "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 4_294_967_295u64},
            "ips": ["10.60.0.9/24", "fd60::9"],
            "mac": "c2:11:22:33:44:55",
        }))
        .unwrap();
        let mapping = |host_ip: Option<&str>, host_port, protocol, port| PortMapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            protocol,
            port,
        };
        assert_eq!(asked.mappings.len(), 3);
        assert!(asked.mappings.contains(&mapping(None, 8080, Protocol::Tcp, 80)));
        assert!(asked.mappings.contains(&mapping(Some("192.0.2.11"), 53, Protocol::Udp, 5353)));
        assert!(asked.mappings.contains(&mapping(None, 36_412, Protocol::Sctp, 36_412)));
        assert_eq!(asked.bandwidth.ingress, Some(Bits { rate: 1_000_000, burst: 4_294_967_295 }));
        assert_eq!(asked.bandwidth.egress, None);
        assert_eq!(asked.addresses.len(), 2);
        assert_eq!(asked.mac, Some([0xc2, 0x11, 0x22, 0x33, 0x44, 0x55]));
    }

    #[test]
    fn nothing_asked_for_is_nothing() {
        assert_eq!(read(&json!({ "name": "n" })).unwrap(), Asked::default());
        assert_eq!(asked(json!({ "portMappings": null, "ips": [], "mac": "" })).unwrap(), Asked::default());
    }

    #[test]
    fn what_cannot_be_read_names_its_field() {
        for (runtime, field) in [
            (json!([]), "runtimeConfig"),
            (json!({"portMappings": [{"hostPort": 70_000, "containerPort": 80}]}), "portMappings"),
            (json!({"portMappings": [{"hostPort": 80, "containerPort": 0}]}), "portMappings"),
            (json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}), "portMappings"),
            (json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "here"}]}), "portMappings"),
            (json!({"bandwidth": {"ingressRate": -1}}), "bandwidth"),
            (json!({"ips": ["10.0.0.1", "10.0.0.2"]}), "ips"),
            (json!({"ips": "10.0.0.1"}), "ips"),
            (json!({"mac": "01:00:5e:00:00:01"}), "mac"),
            (json!({"mac": "c2:11:22:33:44"}), "mac"),
            (json!({"mac": 7}), "mac"),
        ] {
            let error = asked(runtime.clone()).unwrap_err();
            assert!(error.contains(field), "{runtime}: {error}");
        }
    }
}
