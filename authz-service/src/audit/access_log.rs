//! Envoy's gRPC access log: how each tunnel ended, and what it carried.

use std::time::Duration;

use ::audit::Traffic;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry, ResponseFlags,
};
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogService;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse,
};
use envoy_types::pb::google::protobuf::value::Kind;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::Audit;
use super::ends::End;

/// The filter whose metadata our Check fills.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// How often a service that stops looks whether an end is still awaited.
const LOOK: Duration = Duration::from_millis(20);

/// Takes Envoy's access log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    audit: Audit,
    stop: CancellationToken,
}

impl AccessLog {
    /// After `stop`, streams end as soon as nobody waits for what they may bring.
    pub fn new(audit: Audit, stop: CancellationToken) -> Self {
        Self { audit, stop }
    }

    /// Returns when the service stops and no tunnel's end is awaited.
    async fn stopped(&self) {
        self.stop.cancelled().await;
        while self.audit.awaits_ends() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn take(&self, message: StreamAccessLogsMessage) {
        let Some(LogEntries::HttpLogs(logs)) = message.log_entries else {
            return;
        };
        for entry in &logs.log_entry {
            if let Some((decision_id, end)) = read(entry) {
                self.audit.ended(decision_id, end);
            }
        }
    }
}

#[tonic::async_trait]
impl AccessLogService for AccessLog {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        loop {
            tokio::select! {
                message = messages.message() => match message? {
                    Some(message) => self.take(message),
                    None => break,
                },
                () = self.stopped() => break,
            }
        }
        Ok(Response::new(StreamAccessLogsResponse::default()))
    }
}

/// The end of what our Check decided, if that is what it is.
fn read(entry: &HttpAccessLogEntry) -> Option<(&str, End)> {
    let common = entry.common_properties.as_ref()?;
    if common.access_log_type != i32::from(AccessLogType::DownstreamEnd) {
        return None;
    }
    let metadata = &common.metadata.as_ref()?.filter_metadata;
    let decision_id = metadata.get(NAMESPACE)?.fields.get("decision_id")?;
    let Some(Kind::StringValue(decision_id)) = &decision_id.kind else {
        return None;
    };
    let traffic = Traffic {
        bytes_up: entry.request.as_ref().map_or(0, |it| it.request_body_bytes),
        bytes_down: entry
            .response
            .as_ref()
            .map_or(0, |it| it.response_body_bytes),
    };
    let reason = why(common, entry);
    Some((decision_id, End { traffic, reason }))
}

/// In a word of ours: what Envoy says may hold anything.
fn why(common: &AccessLogCommon, entry: &HttpAccessLogEntry) -> &'static str {
    let response = entry.response.as_ref();
    let details = response.map_or("", |it| it.response_code_details.as_str());
    let flags = common.response_flags.as_ref();
    let has = |flag: fn(&ResponseFlags) -> bool| flags.is_some_and(flag);
    if has(|it| it.duration_timeout || it.upstream_max_stream_duration_reached) {
        "duration_reached"
    } else if has(|it| it.stream_idle_timeout) {
        "idle"
    } else if has(|it| it.upstream_connection_failure || it.no_healthy_upstream) {
        "destination_unreachable"
    } else if details.starts_with("rbac_access_denied") {
        "destination_address_forbidden"
    } else if has(|it| it.upstream_connection_termination || it.upstream_remote_reset) {
        "closed_by_destination"
    } else if has(|it| it.downstream_connection_termination || it.downstream_remote_reset) {
        "closed_by_client"
    } else if details == "via_upstream" {
        "completed"
    } else {
        "ended_by_gateway"
    }
}
