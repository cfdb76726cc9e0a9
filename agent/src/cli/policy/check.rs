//! `sluice policy check`.

use super::Proto;
use super::domains::DomainArgs;
use super::rehearsal::Rehearsal;
use super::verdict::{Answer, Connection, Side, Verdict};
use crate::cli::failure::{Done, Failure};
use crate::cli::output::{Output, table, yes};
use clap::Args;
use sluice_ctrl::model::Family;
use std::path::PathBuf;

/// Says whether one end may talk to another, and which rule decides.
#[derive(Args)]
#[command(
    after_help = "Names are NAMESPACE/POD, NAMESPACE/SERVICE, an address, or a domain name that --dns gives addresses to;\n\
    pod/NS/NAME, svc/NS/NAME and node/NAME say which.\n\n\
    Examples:\n  sluice policy check --manifests cluster/ --from shop/web-0 --to shop/db --port 5432\n  \
    sluice policy check --manifests cluster/ --from 198.51.100.7 --to shop/web-0 --port 8080 --expect deny\n  \
    sluice policy check --manifests cluster/ --from shop/web-0 --to www.example.org --port 443 --dns www.example.org=198.51.100.7\n  \
    kubectl get ns,no,po,svc,endpointslices,netpol -A -o yaml > now/all.yaml"
)]
pub struct CheckArgs {
    /// Folder of Kubernetes manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Who opens the connection.
    #[arg(long, value_name = "NAME|IP")]
    from: String,
    /// Whom it is opened to.
    #[arg(long, value_name = "NAME|IP")]
    to: String,
    /// Destination port; not for ICMP.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Protocol.
    #[arg(long, value_enum, default_value_t = Proto::Tcp, ignore_case = true)]
    proto: Proto,
    /// Address family; default: the first one both have.
    #[arg(long, value_name = "4|6", value_parser = family)]
    family: Option<Family>,
    /// End with code 1 unless this is the verdict.
    #[arg(long, value_name = "VERDICT", value_enum)]
    expect: Option<Verdict>,
    #[command(flatten)]
    domains: DomainArgs,
}

/// Reads `4` or `6`.
pub fn family(text: &str) -> Result<Family, String> {
    match text {
        "4" => Ok(Family::V4),
        "6" => Ok(Family::V6),
        _ => Err("expected 4 or 6".to_owned()),
    }
}

/// Answers one question.
pub fn run(args: &CheckArgs, output: &Output) -> Done {
    let rehearsal = Rehearsal::read(&args.manifests, &args.domains)?;
    let question =
        Connection { from: &args.from, to: &args.to, proto: args.proto, port: args.port, family: args.family };
    let answer = question.judge(&rehearsal)?;
    for note in &rehearsal.notes {
        eprintln!("sluice: {note}");
    }
    output.print(&answer, || text(&answer))?;
    match args.expect {
        Some(expected) if expected != answer.verdict => {
            let message = format!("expected {}, but the verdict is {}", expected.name(), answer.verdict.name());
            Err(Failure::untrue(message))
        }
        _ => Ok(()),
    }
}

fn text(answer: &Answer) -> String {
    let port = answer.port.map(|port| format!("/{port}")).unwrap_or_default();
    let by = answer.decided_by.as_ref().or(answer.reason.as_ref());
    let by = by.map_or("no policy selects either end".to_owned(), |by| format!("decided by {by}"));
    let mut text = format!(
        "{}: {} -> {} {}{port} ({}), {by}\n",
        answer.verdict.name(),
        answer.from,
        answer.to,
        answer.proto.name(),
        answer.family
    );
    for (word, side) in [("egress", &answer.egress), ("ingress", &answer.ingress)] {
        let by = side.decided_by.as_ref().or(side.why.as_ref()).cloned().unwrap_or_default();
        let audit = if side.audit { " (only audited: it would deny)" } else { "" };
        text.push_str(&format!("  {word:<8} {:<6} {by}{audit}\n", side.verdict.name()));
    }
    if !answer.backends.is_empty() {
        text.push('\n');
        let rows = answer.backends.iter().map(|backend| {
            let by = backend.decided_by.clone().unwrap_or_default();
            [backend.address.to_string(), backend.name.clone(), backend.verdict.name().to_owned(), by]
        });
        text.push_str(&table(&["BACKEND", "NAME", "VERDICT", "DECIDED BY"], rows));
    }
    let rules = rows("egress", &answer.egress).chain(rows("ingress", &answer.ingress));
    let rules: Vec<_> = rules.collect();
    if !rules.is_empty() {
        text.push('\n');
        text.push_str(&table(&["SIDE", "RULE CONSIDERED", "AT", "TIER", "ACTION", "PEER", "PORT", "DECIDES"], rules));
    }
    text
}

fn rows<'a>(word: &'a str, side: &'a Side) -> impl Iterator<Item = [String; 8]> + 'a {
    side.considered.iter().map(move |rule| {
        let at = rule.at.clone().unwrap_or_default();
        let action = if rule.audit { format!("{} (audit)", rule.action) } else { rule.action.to_owned() };
        let [word, tier] = [word, rule.tier].map(str::to_owned);
        [word, rule.rule.clone(), at, tier, action, yes(rule.peer), yes(rule.port), yes(rule.decides)]
    })
}
