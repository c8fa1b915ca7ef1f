//! `list tunnels`: what the gateway's services hold open now.

use permission::Timestamp;
use proto::admin::v1::{ListTunnelsRequest, Tunnel};
use registry::Filter;
use serde_json::{Value, json};

use crate::clock;
use crate::failure::Failure;
use crate::replicas::{Replica, ReplicaError, answer};
use crate::terminal::{Report, table, tail, when};

/// Most tunnels on a page.
const PAGE: u32 = 1000;

/// Asks every service; one that gives no answer fails the whole, which would be incomplete.
pub(crate) async fn report(replicas: &[Replica], filter: &Filter) -> Result<Report, Failure> {
    let now = clock::now()?;
    let headings = [
        "IDENTITY",
        "DESTINATION",
        "PERMISSION ID",
        "SPKI",
        "OPENED",
        "FROM",
        "SERVICE",
        "ID",
    ];
    let mut lines = vec![headings.map(str::to_owned).to_vec()];
    let mut objects: Vec<Value> = Vec::new();
    for replica in replicas {
        let tunnels = of(replica, filter)
            .await
            .map_err(|source| Failure::Replica {
                replica: replica.clone(),
                source,
            })?;
        for tunnel in tunnels {
            objects.push(object(replica, &tunnel));
            lines.push(cells(replica, tunnel, now));
        }
    }
    Ok(Report {
        text: table(&lines),
        json: objects.into(),
    })
}

async fn of(replica: &Replica, filter: &Filter) -> Result<Vec<Tunnel>, ReplicaError> {
    let mut client = replica.connect().await?;
    let text = |option: Option<String>| option.unwrap_or_default();
    let mut asked = ListTunnelsRequest {
        identity: text(filter.identity.as_ref().map(ToString::to_string)),
        spki_hex: text(filter.spki.as_ref().map(permission::Spki::to_hex)),
        permission_id: text(filter.id.as_ref().map(ToString::to_string)),
        destination: text(filter.destination.as_ref().map(ToString::to_string)),
        page_size: PAGE,
        page_token: String::new(),
    };
    let mut tunnels = Vec::new();
    loop {
        let page = answer(client.list_tunnels(asked.clone())).await?;
        tunnels.extend(page.tunnels);
        if page.next_page_token.is_empty() {
            return Ok(tunnels);
        }
        asked.page_token = page.next_page_token;
    }
}

fn cells(replica: &Replica, tunnel: Tunnel, now: Timestamp) -> Vec<String> {
    let opened = match tunnel.opened_at.parse::<Timestamp>() {
        Ok(time) => when(time, now),
        Err(_) => tunnel.opened_at,
    };
    vec![
        tunnel.identity,
        tunnel.destination,
        tunnel.permission_id,
        tail(&tunnel.spki_hex),
        opened,
        tunnel.connection,
        replica.to_string(),
        tunnel.id,
    ]
}

fn object(replica: &Replica, tunnel: &Tunnel) -> Value {
    json!({
        "id": tunnel.id,
        "identity": tunnel.identity,
        "spki": tunnel.spki_hex,
        "permission_id": tunnel.permission_id,
        "destination": tunnel.destination,
        "connection": tunnel.connection,
        "opened_at": tunnel.opened_at,
        "admin": replica.to_string(),
    })
}
