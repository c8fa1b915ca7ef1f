//! Logs to stderr, and trace context for every tunnel.
//!
//! A tunnel's trace goes on in the gateway, so trace ids are made whether or not spans are
//! exported. They are (by OTLP over gRPC) if `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

use std::io::{self, IsTerminal as _};
use std::str::FromStr as _;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{EnvFilter, FromEnvError, Targets};
use tracing_subscriber::prelude::*;

/// How long the last spans may take to be exported.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `RUST_LOG` can't be parsed.
    #[error(transparent)]
    Filter(#[from] FromEnvError),
    /// The OTLP settings can't be used.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// The process's telemetry; stop it so that no span is lost.
#[derive(Debug)]
pub struct Telemetry(SdkTracerProvider);

impl Telemetry {
    /// Starts logs and traces for the whole process, as the environment says.
    pub fn start() -> Result<Self, TelemetryError> {
        let filter = EnvFilter::builder()
            .with_default_directive(LevelFilter::INFO.into())
            .from_env()?;
        let resource = Resource::builder()
            .with_service_name("agent-gateway-sidecar")
            .build();
        let mut provider = SdkTracerProvider::builder().with_resource(resource);
        if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some_and(|value| !value.is_empty()) {
            provider = provider.with_batch_exporter(SpanExporter::builder().with_tonic().build()?);
        }
        let provider = provider.build();
        let logs = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_filter(filter);
        // Not by RUST_LOG: quiet logs must not break traces. Only our own spans, or exporting a
        // span would make further spans.
        let traces = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("agent-gateway-sidecar"))
            .with_filter(Targets::new().with_target("sidecar", LevelFilter::INFO));
        // Fails only where a subscriber is set already; that one then serves.
        let _ = tracing_subscriber::registry()
            .with(logs)
            .with(traces)
            .try_init();
        Ok(Self(provider))
    }

    /// Exports what is left, if it can be done in time.
    pub async fn stop(self) {
        let flush = move || self.0.shutdown_with_timeout(FLUSH_TIMEOUT);
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, tokio::task::spawn_blocking(flush)).await;
    }
}

/// Makes `span` part of the trace that `headers` name, if they name one.
pub(crate) fn continue_trace(span: &Span, headers: &HeaderMap) {
    let remote =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Incoming(headers));
    if remote.span().span_context().is_valid() {
        // Fails only if nobody records spans.
        let _ = span.set_parent(remote);
    }
}

/// The headers by which the gateway continues the trace of `span`.
pub(crate) fn trace_headers(span: &Span) -> HeaderMap {
    let mut headers = HeaderMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut Outgoing(&mut headers));
    headers
}

/// The trace that `span` is part of, in hex.
pub(crate) fn trace_id(span: &Span) -> String {
    span.context().span().span_context().trace_id().to_string()
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        // Two values are no value: W3C Trace Context, section 3.2.
        let mut values = self.0.get_all(key).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if value.is_empty() {
            // No tracestate, which the propagator writes as an empty one.
            return;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
