//! Logs to stdout, traces to an OTLP collector, and the trace that Envoy began.

use std::collections::HashMap;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tonic::metadata::MetadataMap;
use tracing::Level;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _, filter};

use crate::config::Observability;

/// Why telemetry doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log_level` is no filter.
    #[error("observability.log_level: {0}")]
    Filter(#[from] filter::ParseError),
    /// `otlp_endpoint` is no endpoint.
    #[error("observability.otlp_endpoint: {0}")]
    Endpoint(#[from] ExporterBuildError),
    /// `otlp_endpoint` is an endpoint that the exporter would never connect to.
    #[error("observability.otlp_endpoint does not begin with http://")]
    NotHttp,
    /// Started twice.
    #[error("logging can't be set up: {0}")]
    Twice(#[from] TryInitError),
}

/// What must be flushed at the end.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Whether [`start`] would take this configuration. Needs the runtime, as `start` does.
pub fn check(config: &Observability) -> Result<(), TelemetryError> {
    EnvFilter::try_new(&config.log_level)?;
    exporter(config).map(drop)
}

/// Starts logging and, if an endpoint is configured, tracing.
pub fn start(config: &Observability) -> Result<Telemetry, TelemetryError> {
    let provider = exporter(config)?.map(exporting_to);
    // Our own spans whatever is logged, and no others: the exporter's would call for more of them.
    let own = filter::Targets::new()
        .with_target("authz_service", Level::INFO)
        .with_target("registry", Level::INFO);
    let spans = provider.as_ref().map(|provider| {
        let tracer = provider.tracer("authz");
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_filter(own)
    });
    // No other layer or filter without need: each one's say in whether a span or an event of any
    // library is wanted is asked for again and again, on every frame of HTTP/2.
    let logged = EnvFilter::try_new(&config.log_level)?;
    let stdout = config.log_stdout.then(|| {
        // JSON: no value, whoever chose it, can pass for another line or field.
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_filter(logged)
    });
    tracing_subscriber::registry()
        .with(spans)
        .with(stdout)
        .try_init()?;
    Ok(Telemetry { provider })
}

fn exporter(config: &Observability) -> Result<Option<SpanExporter>, TelemetryError> {
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok(None);
    };
    if !endpoint.starts_with("http://") {
        return Err(TelemetryError::NotHttp);
    }
    let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
    Ok(Some(builder.build()?))
}

fn exporting_to(exporter: SpanExporter) -> SdkTracerProvider {
    let service = Resource::builder().with_service_name("agent-gateway-authz");
    SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(service.build())
        .build()
}

impl Telemetry {
    /// Sends what is still held back; bounded by the exporter's own time-out.
    pub async fn shut_down(self) {
        let Some(provider) = self.provider else {
            return;
        };
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last traces were not sent");
        }
    }
}

/// Makes `span` part of the trace that Envoy is in: the Check call's own `traceparent` if Envoy
/// traces, else the agent's, which Envoy passes on.
pub fn continue_trace(span: &tracing::Span, metadata: &MetadataMap, http: Option<&HttpRequest>) {
    let parent = parent(metadata, http);
    if parent.span().span_context().is_valid() && span.set_parent(parent).is_err() {
        tracing::debug!("tracing is off, so the trace is not continued");
    }
}

fn parent(metadata: &MetadataMap, http: Option<&HttpRequest>) -> Context {
    let propagator = TraceContextPropagator::new();
    let envoy = propagator.extract(&FromMetadata(metadata));
    match http {
        Some(http) if !envoy.span().span_context().is_valid() => {
            propagator.extract(&FromHeaders(&http.headers))
        }
        _ => envoy,
    }
}

/// The id of the trace that [`continue_trace`] would go on with: 32 hexadecimal digits.
pub fn trace_id<'a>(metadata: &'a MetadataMap, http: Option<&'a HttpRequest>) -> Option<&'a str> {
    let envoy = metadata
        .get("traceparent")
        .and_then(|value| value.to_str().ok());
    let agent = || http?.headers.get("traceparent").map(String::as_str);
    envoy.and_then(id_in).or_else(|| id_in(agent()?))
}

/// The trace id of a W3C `traceparent`.
fn id_in(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (_version, id) = (parts.next()?, parts.next()?);
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_id = id.len() == 32 && id.bytes().all(is_digit) && id.bytes().any(|byte| byte != b'0');
    (is_id && parts.next()?.len() == 16).then_some(id)
}

struct FromMetadata<'a>(&'a MetadataMap);

impl Extractor for FromMetadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

struct FromHeaders<'a>(&'a HashMap<String, String>);

impl Extractor for FromHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}
