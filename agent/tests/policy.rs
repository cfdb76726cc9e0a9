//! Stories of `sluice policy`: manifests and questions in, verdicts and exit codes out.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: finance, labels: {team: finance}}}
---
apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}, {type: InternalIP, address: '2001:db8::11'}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-b}
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24, 'fd00:10:244:2::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}, {type: InternalIP, address: '2001:db8::12'}]}
";

fn pod(namespace: &str, name: &str, node: &str, last: &str) -> String {
    let net = if node == "node-a" { 1 } else { 2 };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, image: i, ports: [{{name: main, containerPort: 5432}}]}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: 10.244.{net}.{last}}}, {{ip: 'fd00:10:244:{net}::{last}'}}]}}\n",
        app = name.split('-').next().unwrap()
    )
}

fn base() -> String {
    [
        CLUSTER.to_owned(),
        pod("shop", "web-0", "node-a", "10"),
        pod("shop", "client-0", "node-a", "11"),
        pod("shop", "db-0", "node-b", "20"),
        pod("finance", "billing-0", "node-b", "30"),
        "---\n{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: 10.96.0.20, selector: {app: db}, ports: [{port: 15432, targetPort: main}]}}\n"
            .to_owned(),
        "---\n{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: shop}, spec: {clusterIP: 10.96.0.21, selector: {app: none}, ports: [{port: 80}]}}\n"
            .to_owned(),
    ]
    .concat()
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}}}\n"
    )
}

/// A folder with the cluster and these policies.
fn folder(policies: &[String]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), base() + &policies.concat()).unwrap();
    folder
}

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).output().unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn ask(folder: &Path, from: &str, to: &str, port: &str, more: &[&str]) -> Value {
    let manifests = folder.to_str().unwrap();
    let mut arguments = vec!["policy", "check", "--manifests", manifests, "--from", from, "--to", to, "-o", "json"];
    if !port.is_empty() {
        arguments.extend(["--port", port]);
    }
    arguments.extend(more);
    let done = sluice(&arguments);
    assert!(done.status.success(), "{}", err(&done));
    serde_json::from_slice(&done.stdout).unwrap()
}

const DB_FROM_WEB: &str = "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{protocol: TCP, port: main}]}]";

#[test]
fn without_policies_everybody_may_talk_and_nothing_decides() {
    let folder = folder(&[]);
    let answer = ask(folder.path(), "shop/web-0", "finance/billing-0", "80", &[]);
    assert_eq!((answer["verdict"].as_str(), &answer["decided_by"]), (Some("allow"), &Value::Null));
    assert_eq!(answer["egress"]["considered"], Value::Array(vec![]));
}

#[test]
fn a_default_deny_isolates_and_a_named_rule_with_a_named_port_opens() {
    let folder = folder(&[policy("deny-all", "podSelector: {}, policyTypes: [Ingress]"), policy("db", DB_FROM_WEB)]);
    for family in ["4", "6"] {
        let ask = |from, to, port| ask(folder.path(), from, to, port, &["--family", family]);
        let denied = ask("shop/web-0", "shop/client-0", "80");
        assert_eq!((denied["verdict"].as_str(), denied["decided_by"].as_str()), (Some("deny"), Some("isolation")));
        let allowed = ask("shop/web-0", "shop/db-0", "5432");
        let by = (allowed["verdict"].as_str(), allowed["decided_by"].as_str());
        assert_eq!(by, (Some("allow"), Some("NetworkPolicy/shop/db")));
        let considered = allowed["ingress"]["considered"].as_array().unwrap();
        assert_eq!(considered.len(), 2, "{considered:?}");
        assert_eq!(considered[0]["at"], "spec.ingress[0]");
        assert_eq!((&considered[0]["peer"], &considered[0]["decides"]), (&Value::Bool(true), &Value::Bool(true)));
        assert_eq!(considered[1]["action"], "Isolate");
        assert_eq!(ask("shop/web-0", "shop/db-0", "80")["verdict"], "deny");
        assert_eq!(ask("shop/client-0", "shop/db-0", "5432")["verdict"], "deny");
    }
}

#[test]
fn egress_of_the_source_and_ingress_of_the_destination_both_count() {
    let only_dns =
        "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]";
    let folder = folder(&[policy("web-out", only_dns), policy("db", DB_FROM_WEB)]);
    let answer = ask(folder.path(), "shop/web-0", "shop/db-0", "5432", &[]);
    assert_eq!((answer["verdict"].as_str(), answer["decided_by"].as_str()), (Some("deny"), Some("isolation")));
    assert_eq!(
        (answer["egress"]["verdict"].as_str(), answer["ingress"]["verdict"].as_str()),
        (Some("deny"), Some("allow"))
    );
    assert_eq!(ask(folder.path(), "shop/web-0", "finance/billing-0", "53", &["--proto", "udp"])["verdict"], "allow");
    assert_eq!(ask(folder.path(), "shop/web-0", "finance/billing-0", "", &["--proto", "icmp"])["verdict"], "deny");
}

#[test]
fn blocks_let_addresses_in_except_their_holes() {
    let block = "podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.128/25]}}]}]";
    let folder = folder(&[policy("block", block)]);
    assert_eq!(ask(folder.path(), "198.51.100.7", "shop/web-0", "80", &[])["verdict"], "allow");
    assert_eq!(ask(folder.path(), "198.51.100.200", "shop/web-0", "80", &[])["verdict"], "deny");
    assert_eq!(ask(folder.path(), "node/node-b", "shop/web-0", "80", &[])["verdict"], "deny");
    let own = ask(folder.path(), "192.0.2.11", "shop/web-0", "80", &[]);
    assert_eq!(own["verdict"], "allow", "a node reaches its own pods");
}

#[test]
fn a_service_is_judged_by_its_backends_at_their_port() {
    let folder = folder(&[policy("db", DB_FROM_WEB)]);
    let allowed = ask(folder.path(), "shop/web-0", "shop/db", "15432", &[]);
    assert_eq!(
        (allowed["verdict"].as_str(), allowed["backends"][0]["address"].as_str()),
        (Some("allow"), Some("10.244.2.20:5432"))
    );
    assert_eq!(allowed["backends"][0]["name"], "shop/db-0");
    assert_eq!(ask(folder.path(), "shop/client-0", "10.96.0.20", "15432", &[])["verdict"], "deny");
    let wrong = ask(folder.path(), "shop/web-0", "svc/shop/db", "5432", &[]);
    assert_eq!((wrong["verdict"].as_str(), wrong["reason"].as_str()), (Some("deny"), Some("NoBackend")));
    assert_eq!(ask(folder.path(), "shop/web-0", "shop/nobody", "80", &[])["reason"], "NoBackend");
}

#[test]
fn a_cluster_wide_rule_stands_above_and_is_named() {
    let admin = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: private}\n\
        spec: {tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {team: finance}}}, ingress: [{name: no-shop, action: Deny, from: [{namespaces: {matchLabels: {team: shop}}}]}]}\n";
    let folder = folder(&[admin.to_owned()]);
    let answer = ask(folder.path(), "shop/web-0", "10.244.2.30", "80", &[]);
    assert_eq!(answer["decided_by"], "ClusterNetworkPolicy/private#no-shop");
    assert_eq!(answer["ingress"]["considered"][0]["tier"], "Admin");
}

#[test]
fn an_expectation_that_does_not_hold_ends_with_1() {
    let folder = folder(&[policy("db", DB_FROM_WEB)]);
    let check = |from: &str, expect: &str| {
        let manifests = folder.path().to_str().unwrap();
        let to = ["--to", "shop/db-0", "--port", "5432", "--proto", "tcp", "--expect", expect];
        sluice(&[&["policy", "check", "--manifests", manifests, "--from", from], &to[..]].concat())
    };
    assert_eq!(check("shop/web-0", "allow").status.code(), Some(0));
    assert_eq!(check("shop/client-0", "deny").status.code(), Some(0));
    let done = check("shop/client-0", "allow");
    assert_eq!(done.status.code(), Some(1));
    assert!(err(&done).contains("expected allow"));
    assert!(String::from_utf8_lossy(&done.stdout).contains("deny: shop/client-0 -> shop/db-0 tcp/5432"));
}

#[test]
fn unknown_names_end_with_2_and_a_suggestion() {
    let folder = folder(&[]);
    let manifests = folder.path().to_str().unwrap();
    let check = |from: &str, to: &str| {
        sluice(&["policy", "check", "--manifests", manifests, "--from", from, "--to", to, "--port", "80"])
    };
    let done = check("shop/web-O", "shop/db-0");
    assert_eq!(done.status.code(), Some(2));
    assert!(err(&done).contains("did you mean the pod shop/web-0?"), "{}", err(&done));
    assert_eq!(check("nonsense", "shop/db-0").status.code(), Some(2));
    assert_eq!(check("svc/shop/db", "shop/db-0").status.code(), Some(2));
    assert_eq!(
        sluice(&["policy", "check", "--manifests", "/no/such/folder", "--from", "a/b", "--to", "a/c", "--port", "1"])
            .status
            .code(),
        Some(2)
    );
    std::fs::write(folder.path().join("bad.yaml"), "kind: [").unwrap();
    let done = check("shop/web-0", "shop/db-0");
    assert_eq!(done.status.code(), Some(2));
    assert!(err(&done).contains("bad.yaml"), "{}", err(&done));
}

#[test]
fn pods_without_node_and_address_are_judged_and_said_to_be_made_up() {
    let folder = tempfile::tempdir().unwrap();
    let bare = |name: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}}}\n"
        )
    };
    std::fs::write(
        folder.path().join("a.yaml"),
        [bare("web"), bare("db"), bare("other"), policy("db", &DB_FROM_WEB.replace("port: main", "port: 5432"))]
            .concat(),
    )
    .unwrap();
    assert_eq!(ask(folder.path(), "shop/web", "shop/db", "5432", &[])["verdict"], "allow");
    assert_eq!(ask(folder.path(), "shop/other", "shop/db", "5432", &[])["verdict"], "deny");
    let manifests = folder.path().to_str().unwrap();
    let done =
        sluice(&["policy", "check", "--manifests", manifests, "--from", "shop/web", "--to", "shop/db", "--port", "1"]);
    assert!(err(&done).contains("shop/web has no address"), "{}", err(&done));
}

#[test]
fn a_list_of_cases_is_a_table_and_ends_with_1_on_a_difference() {
    let folder = folder(&[policy("db", DB_FROM_WEB)]);
    let cases = folder.path().join("cases.txt");
    let run = |text: &str| {
        std::fs::write(&cases, text).unwrap();
        sluice(&["policy", "test", cases.to_str().unwrap(), "--manifests", folder.path().to_str().unwrap()])
    };
    let right = "- {from: shop/web-0, to: shop/db-0, port: 5432, proto: tcp, expect: allow, title: pages}\n";
    let done = run(right);
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(String::from_utf8_lossy(&done.stdout).contains("pages"));
    let done = run(&format!("{right}- {{from: shop/client-0, to: shop/db-0, port: 5432, expect: allow}}\n"));
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stdout).contains("DIFFERENT") && err(&done).contains("1 of 2"));
    let done = run(&format!("{right}- {{from: shop/clint-0, to: shop/db-0, port: 5432, expect: allow}}\n"));
    assert_eq!(done.status.code(), Some(2));
    assert!(err(&done).contains("case 2") && err(&done).contains("shop/client-0"), "{}", err(&done));
    assert!(err(&done).contains("cases.txt:2: "), "{}", err(&done));
    let done = run(&format!("{right}- {{from: a/b, too: c/d}}\n"));
    assert_eq!(done.status.code(), Some(2));
    assert!(err(&done).contains("cases.txt:2:") && err(&done).contains("too"), "{}", err(&done));
    for bad in ["- {from: shop/web-0, to: shop/db-0, port: 70000, expect: allow}\n", "- {from: [\n", "from: x\n"] {
        let done = run(bad);
        assert_eq!(done.status.code(), Some(2), "{bad}");
        assert!(err(&done).contains("cases.txt:"), "{bad}: {}", err(&done));
    }
}

#[test]
fn a_diff_shows_the_pairs_and_ports_that_change() {
    let (old, new) = (folder(&[]), folder(&[policy("db", DB_FROM_WEB)]));
    let arguments = |more: &'static str| {
        let (old, new) = (old.path().to_str().unwrap().to_owned(), new.path().to_str().unwrap().to_owned());
        sluice(&["policy", "diff", &old, &new, "-o", more])
    };
    let done = arguments("json");
    assert!(done.status.success(), "{}", err(&done));
    let difference: Value = serde_json::from_slice(&done.stdout).unwrap();
    let changes = difference["changes"].as_array().unwrap();
    assert!(changes.iter().all(|c| c["to"] == "shop/db-0" && c["old"] == "allow" && c["new"] == "deny"), "{changes:?}");
    let has = |from: &str, proto: &str, port: Value| {
        changes.iter().any(|c| c["from"] == from && c["proto"] == proto && c["port"] == port)
    };
    assert!(has("shop/client-0", "tcp", 5432.into()) && has("shop/web-0", "tcp", Value::Null));
    assert!(has("finance/billing-0", "udp", 5432.into()) && has("finance/billing-0", "icmp", Value::Null));
    assert!(!has("shop/web-0", "tcp", 5432.into()));
    let table = String::from_utf8(arguments("table").stdout).unwrap();
    assert!(table.contains("allow -> deny") && table.contains("no policy -> isolation"), "{table}");
    let same = old.path().to_str().unwrap();
    let done = sluice(&["policy", "diff", same, same, "--exit-code"]);
    assert_eq!(
        (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned()),
        (Some(0), "no verdict changes\n".into())
    );
    let done = sluice(&["policy", "diff", same, new.path().to_str().unwrap(), "--exit-code"]);
    assert_eq!(done.status.code(), Some(1));
}

#[test]
fn a_matrix_shows_who_reaches_whom_in_every_form() {
    let folder = folder(&[policy("db", DB_FROM_WEB)]);
    let run = |more: &[&str]| {
        let manifests = folder.path().to_str().unwrap();
        let done = sluice(&[&["policy", "matrix", "--manifests", manifests], more].concat());
        assert!(done.status.success(), "{}", err(&done));
        String::from_utf8(done.stdout).unwrap()
    };
    let json: Value = serde_json::from_str(&run(&["--port", "5432", "-o", "json"])).unwrap();
    let cell = |from: &str, to: &str| {
        let cells = json["cells"].as_array().unwrap();
        cells.iter().find(|cell| cell["from"] == from && cell["to"] == to).cloned().unwrap_or_default()
    };
    assert_eq!(json["asked"], "tcp/5432");
    assert_eq!(cell("shop/web-0", "shop/db-0")["verdict"], "allow");
    assert_eq!(cell("shop/web-0", "shop/db-0")["decided_by"][0], "NetworkPolicy/shop/db");
    for stranger in ["shop/client-0", "finance/billing-0", "outside"] {
        assert_eq!(cell(stranger, "shop/db-0")["verdict"], "deny", "{stranger}");
        assert_eq!(cell(stranger, "shop/db-0")["decided_by"][0], "isolation", "{stranger}");
    }
    assert_eq!(cell("shop/db-0", "outside")["verdict"], "allow");
    assert_eq!(cell("shop/db-0", "shop/db-0"), Value::Null);

    let table = run(&[]);
    let row = table.lines().find(|line| line.starts_with("shop/web-0")).unwrap();
    assert!(row.split_whitespace().any(|word| word == "5432") && row.contains("itself"), "{table}");
    let svg = run(&["-o", "svg"]);
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    let drawn = "shop/web-0 → shop/db-0: 5432 (NetworkPolicy/shop/db, isolation)";
    assert!(svg.contains(drawn) && svg.contains("Who reaches whom"), "{svg}");
    assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
    let dot = run(&["-o", "dot", "--port", "5432"]);
    assert!(
        dot.contains("\"shop/web-0\" -> \"shop/db-0\"") && !dot.contains("\"shop/client-0\" -> \"shop/db-0\""),
        "{dot}"
    );
    let filtered: Value =
        serde_json::from_str(&run(&["--from-namespace", "finance", "--to-namespace", "shop", "-o", "json"])).unwrap();
    assert_eq!(filtered["sources"].as_array().unwrap().len(), 1);
    assert!(filtered["destinations"].as_array().unwrap().iter().all(|end| end["namespace"] == "shop"));
    let manifests = folder.path().to_str().unwrap();
    let unknown = sluice(&["policy", "matrix", "--manifests", manifests, "--namespace", "nowhere"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert_eq!(sluice(&["policy", "diff", manifests, manifests, "-o", "svg"]).status.code(), Some(2));
}

#[test]
fn pods_that_behave_the_same_share_a_row_unless_each_is_asked_for() {
    let twins: Vec<String> = (1..4).map(|n| pod("shop", &format!("web-{n}"), "node-a", &format!("4{n}"))).collect();
    let folder = folder(&[twins.concat(), policy("db", DB_FROM_WEB)]);
    let sources = |more: &[&str]| {
        let manifests = folder.path().to_str().unwrap();
        let done = sluice(&[&["policy", "matrix", "--manifests", manifests, "-o", "json"], more].concat());
        let json: Value = serde_json::from_slice(&done.stdout).unwrap();
        json["sources"].as_array().unwrap().clone()
    };
    let together = sources(&[]);
    let web = together.iter().find(|end| end["name"] == "shop/web-*").unwrap();
    assert_eq!(web["pods"].as_array().unwrap().len(), 4);
    assert!(sources(&["--each"]).iter().any(|end| end["name"] == "shop/web-3"));
}

#[test]
fn what_an_audited_policy_would_deny_passes_and_says_so() {
    let audited = policy("deny-all", "podSelector: {}, policyTypes: [Ingress]")
        .replace("namespace: shop}", "namespace: shop, annotations: {sluicegate.dev/enforcement: audit}}");
    let folder = folder(&[audited]);
    let answer = ask(folder.path(), "shop/web-0", "shop/db-0", "80", &["--expect", "allow"]);
    assert_eq!((answer["verdict"].as_str(), &answer["ingress"]["audit"]), (Some("allow"), &Value::Bool(true)));
    assert_eq!(answer["ingress"]["decided_by"], "NetworkPolicy/shop/deny-all");
    assert_eq!(answer["ingress"]["considered"][0]["audit"], true);
    let manifests = folder.path().to_str().unwrap();
    let question =
        ["policy", "check", "--manifests", manifests, "--from", "shop/web-0", "--to", "shop/db-0", "--port", "80"];
    let text = String::from_utf8(sluice(&question).stdout).unwrap();
    assert!(text.contains("only audited: it would deny") && text.contains("Isolate (audit)"), "{text}");
    let done = sluice(&["policy", "matrix", "--manifests", manifests, "--port", "80", "--each", "-o", "json"]);
    let json: Value = serde_json::from_slice(&done.stdout).unwrap();
    let cells = json["cells"].as_array().unwrap();
    let cell = cells.iter().find(|cell| cell["from"] == "outside" && cell["to"] == "shop/db-0").unwrap();
    assert_eq!((&cell["verdict"], &cell["audited"][0]), (&"allow".into(), &"tcp/80".into()));
}

/// Only the shop's web pods are limited: to names, to DNS and to nobody else.
const NAMED: &str = "---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: names}
spec:
  tier: Admin
  priority: 1
  subject: {pods: {podSelector: {matchLabels: {app: web}}}}
  egress:
  - {name: web, action: Accept, to: [{domainNames: ['*.example.org', api.example.net]}], protocols: [{tcp: {destinationPort: {number: 443}}}]}
  - {name: rest, action: Deny, to: [{networks: ['0.0.0.0/0', '::/0']}]}
";
const WWW: &str = "www.example.org=198.51.100.7,2001:db8:7::7";

#[test]
fn a_domain_name_is_judged_by_the_addresses_that_are_said_and_closed_without_them() {
    let folder = folder(&[NAMED.to_owned()]);
    let manifests = folder.path().to_str().unwrap();
    let check = |to: &str, more: &[&str]| {
        let arguments =
            ["policy", "check", "--manifests", manifests, "--from", "shop/web-0", "--to", to, "--port", "443"];
        sluice(&[&arguments[..], &["-o", "json"], more].concat())
    };
    let verdict = |done: &Output| -> Value { serde_json::from_slice(&done.stdout).unwrap() };
    let said = ["--dns", WWW, "--dns", "api.example.net=198.51.100.9"];
    for (to, more) in [("www.example.org", &[][..]), ("198.51.100.7", &[]), ("www.example.org", &["--family", "6"])] {
        let done = check(to, &[&said[..], more].concat());
        let answer = verdict(&done);
        assert_eq!(
            (&answer["verdict"], &answer["decided_by"]),
            (&"allow".into(), &"ClusterNetworkPolicy/names#web".into())
        );
        let considered = answer["egress"]["considered"].as_array().unwrap();
        assert!(considered[0]["decides"] == true && considered[0]["peer"] == true, "{answer}");
        assert!(err(&done).is_empty(), "{}", err(&done));
    }
    // Another address, another name's address, another port.
    let stranger = check("198.51.100.8", &said);
    assert_eq!(verdict(&stranger)["decided_by"], "ClusterNetworkPolicy/names#rest");
    // Without addresses the rule matches nothing, and that is told.
    let unsaid = check("198.51.100.7", &[]);
    assert_eq!(verdict(&unsaid)["verdict"], "deny");
    let told = err(&unsaid);
    assert!(told.contains("*.example.org") && told.contains("api.example.net") && told.contains("--dns"), "{told}");
    // One of a name's addresses that is not allowed is enough: a client does not choose.
    let both = check("evil.test", &["--dns", "evil.test=198.51.100.7", "--dns", "evil.test=203.0.113.1", "--dns", WWW]);
    let answer = verdict(&both);
    assert_eq!(answer["verdict"], "deny");
    assert_eq!(answer["backends"].as_array().unwrap().len(), 2);
    assert!(err(&both).contains("no rule has evil.test among its domainNames"), "{}", err(&both));
}

#[test]
fn what_is_no_name_no_address_or_no_file_of_names_ends_with_2() {
    let folder = folder(&[NAMED.to_owned()]);
    let manifests = folder.path().to_str().unwrap();
    let file = folder.path().join("names.txt");
    std::fs::write(&file, "- just\n- a list\n").unwrap();
    let file = file.to_str().unwrap();
    let ask = |to: &str, more: &[&str]| {
        let arguments =
            ["policy", "check", "--manifests", manifests, "--from", "shop/web-0", "--to", to, "--port", "443"];
        sluice(&[&arguments[..], more].concat())
    };
    for (to, more, word) in [
        ("www.example.org", &[][..], "--dns www.example.org=ADDRESS"),
        ("198.51.100.7", &["--dns", "www.example.org"], "NAME=ADDRESS"),
        ("198.51.100.7", &["--dns", "www.example.org=elsewhere"], "not looked up"),
        ("198.51.100.7", &["--dns-file", file], "expected a mapping"),
        ("198.51.100.7", &["--dns-file", "/nowhere/at/all"], "/nowhere/at/all"),
    ] {
        let done = ask(to, more);
        assert_eq!(done.status.code(), Some(2), "{to} {more:?}: {}", err(&done));
        assert!(err(&done).contains(word), "{more:?}: {}", err(&done));
    }
    let from =
        ["policy", "check", "--manifests", manifests, "--from", "www.example.org", "--to", "shop/db-0", "--port", "1"];
    let done = sluice(&[&from[..], &["--dns", WWW]].concat());
    assert_eq!(done.status.code(), Some(2));
    assert!(err(&done).contains("name the source by its address"), "{}", err(&done));
}

#[test]
fn names_that_are_said_are_columns_of_a_matrix_cases_of_a_test_and_lines_of_a_diff() {
    let (now, next) = (folder(&[NAMED.to_owned()]), folder(&[NAMED.replace("'*.example.org', ", "")]));
    let manifests = now.path().to_str().unwrap();
    let names = now.path().join("names.map");
    std::fs::write(&names, "www.example.org: [198.51.100.7]\n").unwrap();
    let file = ["--dns-file", names.to_str().unwrap()];
    let asked = ["policy", "matrix", "--manifests", manifests, "--port", "443", "--each", "-o", "json"];
    let done = sluice(&[&asked[..], &file].concat());
    let matrix: Value = serde_json::from_slice(&done.stdout).unwrap();
    let cell = |from: &str, to: &str| {
        let cells = matrix["cells"].as_array().unwrap();
        cells.iter().find(|c| c["from"] == from && c["to"] == to).map(|c| c["verdict"].clone())
    };
    assert_eq!(cell("shop/web-0", "www.example.org"), Some("allow".into()));
    assert_eq!(cell("shop/web-0", "outside"), Some("deny".into()));
    assert_eq!(cell("shop/client-0", "www.example.org"), Some("allow".into()));
    let cases = now.path().join("cases.txt");
    std::fs::write(
        &cases,
        "- {from: shop/web-0, to: www.example.org, port: 443, expect: allow}\n\
         - {from: shop/web-0, to: www.example.org, port: 80, expect: deny}\n",
    )
    .unwrap();
    let arguments = ["policy", "test", cases.to_str().unwrap(), "--manifests", manifests];
    let done = sluice(&[&arguments[..], &file].concat());
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    let arguments = ["policy", "diff", manifests, next.path().to_str().unwrap(), "-o", "json"];
    let done = sluice(&[&arguments[..], &file].concat());
    let difference: Value = serde_json::from_slice(&done.stdout).unwrap();
    let changes = difference["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!([&changes[0]["from"], &changes[0]["to"]], ["shop/web-0", "www.example.org"]);
    assert_eq!(
        [&changes[0]["old"], &changes[0]["new"], &changes[0]["port"]],
        [&Value::from("allow"), &"deny".into(), &443.into()]
    );
}
