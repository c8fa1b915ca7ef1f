//! One request of a local client: judged for its form alone, then sent to the gateway.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::sleep;
use tracing::{Instrument as _, Span, field};

use super::answer::{self, Body, Local};
use super::client::{Client, Peer};
use super::relay::{self, Ended};
use super::{Proxy, is_gone};
use crate::gateway::{Answer, OpenError, Tunnel};
use crate::rekey;
use crate::status::{self, FailedAttempt, Live};
use crate::telemetry;

/// How long a request is still waited for when its client has left. Envoy closes a connection on
/// which many requests (250) are reset unanswered within 2 s, and with it everybody's tunnels.
const ABANDONED_FOR: Duration = Duration::from_secs(3);

/// A local connection's place among the bounded number, shared with its tunnel.
pub(super) type ConnectionPermit = Arc<OwnedSemaphorePermit>;

impl Proxy {
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        connection: ConnectionPermit,
    ) -> Response<Body> {
        if peer == Peer::Unknown
            && let Some(token) = &self.0.token
            && !token.is_in(request.headers())
        {
            tracing::info!("refused: the client does not know the token");
            return answer::local(&Local::NoToken);
        }
        if request.method() == Method::GET && *request.uri() == status::PATH {
            return answer::json(StatusCode::OK, &json!(self.status().await));
        }
        if request.method() == Method::POST
            && *request.uri() == rekey::PATH
            && let Some(rekey) = &self.0.rekey
        {
            return match rekey.run().await {
                Ok(spki) => answer::json(StatusCode::OK, &json!({ "spki": spki.to_hex() })),
                Err(error) => {
                    tracing::warn!(%error, "can't use another key");
                    let told = json!({ "error": error.to_string() });
                    answer::json(StatusCode::SERVICE_UNAVAILABLE, &told)
                }
            };
        }
        if request.method() != Method::CONNECT {
            return answer::local(&Local::NotConnect);
        }
        let Some(authority) = authority(request.uri()) else {
            return answer::local(&Local::NoAuthority);
        };
        let span = tracing::info_span!(
            "tunnel",
            otel.kind = "client",
            %authority,
            trace_id = field::Empty,
            http.response.status_code = field::Empty,
        );
        telemetry::continue_trace(&span, request.headers());
        let response = self
            .connect(request, authority, connection)
            .instrument(span.clone())
            .await;
        span.record("http.response.status_code", response.status().as_u16());
        response
    }

    async fn status(&self) -> Live {
        let way = self.0.gateway.way();
        let spki = match &self.0.rekey {
            Some(rekey) => Some(rekey.current().await.to_hex()),
            None => None,
        };
        Live {
            spki,
            gateways: way.gateways,
            connections: way.connections,
            tunnels: self.0.max_tunnels - self.0.tunnels.available_permits(),
            max_tunnels: self.0.max_tunnels,
            last_handshake: way.last_connected.map(status::unix_seconds),
            last_failure: way.last_failure.map(|(at, error)| FailedAttempt {
                at: status::unix_seconds(at),
                error: error.to_string(),
            }),
        }
    }

    async fn connect(
        &self,
        request: Request<Incoming>,
        authority: Authority,
        connection: ConnectionPermit,
    ) -> Response<Body> {
        let Ok(place) = Arc::clone(&self.0.tunnels).try_acquire_owned() else {
            tracing::warn!(
                max_tunnels = self.0.max_tunnels,
                "refused: too many tunnels"
            );
            return answer::local(&Local::TooManyTunnels);
        };
        // Nothing else of the client's header goes on: it may hold credentials, and the gateway
        // has no use for it.
        let headers = telemetry::trace_headers(&Span::current());
        Span::current().record("trace_id", telemetry::trace_id(&Span::current()));
        let answer = self.open(authority, headers, place);
        let Ok((answer, place)) = answer.await else {
            // Only if the asking task panicked.
            return answer::local(&Local::NotOpened(OpenError::Interrupted));
        };
        match answer {
            Ok(Answer::Open(tunnel, headers)) => {
                let upgrade = hyper::upgrade::on(request);
                let carried = self.clone().carry(upgrade, tunnel).in_current_span();
                self.0.tasks.spawn(async move {
                    carried.await;
                    drop((place, connection));
                });
                answer::open(&headers)
            }
            Ok(Answer::Refuse(refusal)) => {
                tracing::info!(status = refusal.status.as_u16(), "refused by the gateway");
                answer::refusal(refusal)
            }
            Err(error) => {
                tracing::warn!(%error, "no tunnel");
                answer::local(&Local::NotOpened(error))
            }
        }
    }

    /// Asks the gateway, on a task that outlives a client that leaves: see [`ABANDONED_FOR`].
    fn open(
        &self,
        authority: Authority,
        headers: HeaderMap,
        place: OwnedSemaphorePermit,
    ) -> oneshot::Receiver<(Result<Answer, OpenError>, OwnedSemaphorePermit)> {
        let gateway = Arc::clone(&self.0.gateway);
        let (mut client, answered) = oneshot::channel();
        let asking = async move {
            let abandoned = async {
                client.closed().await;
                sleep(ABANDONED_FOR).await;
            };
            let answer = tokio::select! {
                answer = gateway.open(&authority, &headers) => answer,
                () = abandoned => return,
            };
            // To a client that has left, this gives tunnel and place back.
            let _ = client.send((answer, place));
        };
        tokio::spawn(asking.in_current_span());
        answered
    }

    /// Waits until the client has its 200, then moves bytes until the tunnel ends.
    async fn carry(self, upgrade: OnUpgrade, tunnel: Tunnel) {
        let upgraded = tokio::select! {
            upgraded = upgrade => upgraded,
            () = self.0.cut.cancelled() => return tunnel.reset(),
        };
        let Some((client, early)) = upgraded.ok().and_then(into_parts) else {
            tracing::debug!("the client left before its tunnel was open");
            return tunnel.reset();
        };
        tracing::debug!("open");
        let carried = relay::run(client, early, tunnel, self.0.cut.cancelled()).await;
        let (up, down) = (carried.bytes_up, carried.bytes_down);
        match carried.ended {
            Ended::Orderly => tracing::info!(up, down, "tunnel ended"),
            Ended::Client(error) if is_gone(&error) => {
                tracing::info!(up, down, "tunnel ended: the client left");
            }
            Ended::Client(error) => {
                tracing::warn!(up, down, %error, "tunnel ended: the client's connection failed");
            }
            Ended::Gateway(cut) => tracing::warn!(up, down, "tunnel {cut}"),
            Ended::Stopped => tracing::info!(up, down, "tunnel cut: the sidecar stops"),
        }
    }
}

/// The target of a CONNECT, if it is nothing but host and port (RFC 9112, section 3.2.3). To
/// [`Authority`] a password is part of it too, which must be in no log, nor leave this machine.
fn authority(uri: &Uri) -> Option<Authority> {
    if uri.scheme().is_some() || uri.path_and_query().is_some() {
        return None;
    }
    uri.authority()
        .filter(|authority| !authority.as_str().contains('@'))
        .cloned()
}

/// The client's socket, and what it sent right behind its header.
fn into_parts(upgraded: Upgraded) -> Option<(Client, bytes::Bytes)> {
    let parts = upgraded.downcast::<TokioIo<Client>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_are_a_target() {
        for (target, expected) in [
            ("docstore:8443", Some("docstore:8443")),
            ("DocStore", Some("DocStore")),
            ("[::1]:443", Some("[::1]:443")),
            ("https://docstore/", None),
            ("docstore:443/path", None),
            ("/", None),
            ("*", None),
            ("user:pw@docstore:443", None),
            ("user@docstore:443", None),
            ("a@b@docstore:443", None),
        ] {
            let found = target.parse().ok().and_then(|uri| authority(&uri));
            assert_eq!(found.as_ref().map(Authority::as_str), expected, "{target}");
        }
    }
}
