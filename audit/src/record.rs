//! What a record says: one shape for both lanes.

use std::fmt::{Display, Write as _};
use std::net::SocketAddr;

use permission::{Destination, Identity, Spki, Timestamp};

use crate::canonical::{self, MAX_INTEGER};
use crate::chain::Hash;

/// Something that happened. What is `None` is not known, or doesn't apply.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// When.
    pub ts: Timestamp,
    /// What.
    pub event: Event,
    /// What was asked for.
    pub target: Target<'a>,
    /// The decision's id, also in answers, logs and Envoy's access log.
    pub decision_id: Option<&'a str>,
    /// Envoy's id of the request.
    pub request_id: Option<&'a str>,
    /// The trace that the request is part of: 32 hexadecimal digits.
    pub trace_id: Option<&'a str>,
    /// Who asked: the certificate's identity, in the fields `caller` and `identity`.
    pub identity: Option<&'a Identity>,
    /// With which key; its hash is in the record.
    pub spki: Option<&'a Spki>,
    /// The permission that allowed it.
    pub permission_id: Option<&'a str>,
    /// The key that signed the permission.
    pub signing_key_id: Option<&'a str>,
    /// The address that Envoy was told to dial.
    pub dialled: Option<SocketAddr>,
    /// Why, in codes: of a deny or of a tunnel's end; `allowed` of an allow.
    pub reason: &'a [&'a str],
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A request was decided, and told so with this HTTP status (200: it may go on).
    Decision(Outcome, u16),
    /// An open tunnel ended, `duration_ms` after it was opened.
    TunnelEnd {
        /// Milliseconds.
        duration_ms: u64,
        /// What it carried, if that was reported.
        traffic: Option<Traffic>,
    },
    /// The service began to write. Tunnels of an earlier run of this replica that have no end
    /// record ended with that run.
    Started {
        /// Bytes of a last line that was never completed, and so never answered; they were removed.
        torn_bytes: u64,
    },
    /// Records can be written again; meanwhile this many could not, and their requests were denied.
    Resumed {
        /// How many.
        unwritten: u64,
    },
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It may go on.
    Allow,
    /// It may not.
    Deny,
}

/// Bytes that a tunnel carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// From the agent.
    pub bytes_up: u64,
    /// To the agent.
    pub bytes_down: u64,
}

/// What a request is for; which lane it is says the field's name.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// `destination`, of a tunnel.
    Tunnel(Option<&'a Destination>),
    /// `tool`, of a relay call: the name as the caller gave it.
    Tool(Option<&'a str>),
    /// Nothing was asked for.
    Nothing,
}

impl Record<'_> {
    /// A record that says nothing yet but when and what.
    pub fn new(ts: Timestamp, event: Event) -> Self {
        Record {
            ts,
            event,
            target: Target::Nothing,
            decision_id: None,
            request_id: None,
            trace_id: None,
            identity: None,
            spki: None,
            permission_id: None,
            signing_key_id: None,
            dialled: None,
            reason: &[],
        }
    }

    /// Appends the canonical JSON, whose keys are in order, but for what a chain knows.
    pub(crate) fn write(&self, replica: &str, out: &mut String) -> Gaps {
        let mut members = Members { out, any: false };
        let (end, torn_bytes, unwritten) = match self.event {
            Event::TunnelEnd {
                duration_ms,
                traffic,
            } => (Some((duration_ms, traffic)), None, None),
            Event::Started { torn_bytes } => (None, Some(torn_bytes), None),
            Event::Resumed { unwritten } => (None, None, Some(unwritten)),
            Event::Decision(..) => (None, None, None),
        };
        let traffic = end.and_then(|(_, traffic)| traffic);
        let is_decision = matches!(self.event, Event::Decision(..));
        let identity = self.identity.map(Identity::as_str);
        members.number("bytes_down", traffic.map(|traffic| traffic.bytes_down));
        members.number("bytes_up", traffic.map(|traffic| traffic.bytes_up));
        members.text_or_null("caller", identity, is_decision);
        if let Event::Decision(outcome, _) = self.event {
            members.text("decision", Some(outcome.name()));
        }
        members.text_or_null("decision_id", self.decision_id, is_decision);
        if let Target::Tunnel(destination) = self.target {
            members.shown_or_null("destination", destination);
        }
        members.shown("dialled", self.dialled);
        members.number("duration_ms", end.map(|(duration_ms, _)| duration_ms));
        members.text("event", Some(self.event.name()));
        members.text("identity", identity);
        members.text("permission_id", self.permission_id);
        let prev_hash = members.gap("prev_hash", "\"", "\"");
        members.list("reason", self.reason);
        let record_hash = members.out.len();
        members.text("replica", Some(replica));
        members.text("request_id", self.request_id);
        let seq = members.gap("seq", "", "");
        members.text("signing_key_id", self.signing_key_id);
        let spki = self.spki.map(|spki| Hash::of([spki.as_der()]));
        members.shown("spki_sha256", spki);
        if let Event::Decision(_, status) = self.event {
            members.number("status", Some(status.into()));
        }
        if let Target::Tool(tool) = self.target {
            members.text_or_null("tool", tool, true);
        }
        members.number("torn_bytes", torn_bytes);
        members.text_or_null("trace_id", self.trace_id, is_decision);
        members.shown("ts", Some(self.ts));
        members.number("unwritten", unwritten);
        members.out.push('}');
        Gaps {
            prev_hash,
            record_hash,
            seq,
        }
    }
}

/// Where what only a chain knows belongs in a record's JSON, in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gaps {
    /// Between its quotes.
    pub(crate) prev_hash: usize,
    /// The whole member, with the comma before it.
    pub(crate) record_hash: usize,
    /// A number.
    pub(crate) seq: usize,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Decision(..) => "decision",
            Self::TunnelEnd { .. } => "tunnel_end",
            Self::Started { .. } => "started",
            Self::Resumed { .. } => "resumed",
        }
    }
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Writes members, of which those that are `None` are left out.
struct Members<'a> {
    out: &'a mut String,
    any: bool,
}

impl Members<'_> {
    /// Keys are our own, and need no escapes.
    fn key(&mut self, key: &str) {
        self.out.push_str(if self.any { ",\"" } else { "{\"" });
        self.out.push_str(key);
        self.out.push_str("\":");
        self.any = true;
    }

    /// Leaves the value out, and returns where it belongs.
    fn gap(&mut self, key: &str, before: &str, after: &str) -> usize {
        self.key(key);
        self.out.push_str(before);
        let at = self.out.len();
        self.out.push_str(after);
        at
    }

    fn text(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.key(key);
            canonical::text(text, self.out);
        }
    }

    fn text_or_null(&mut self, key: &str, text: Option<&str>, or_null: bool) {
        self.text(key, text);
        if text.is_none() && or_null {
            self.null(key);
        }
    }

    fn null(&mut self, key: &str) {
        self.key(key);
        self.out.push_str("null");
    }

    /// What is displayed in plain ASCII without quotes or backslashes.
    fn shown(&mut self, key: &str, shown: Option<impl Display>) {
        if let Some(shown) = shown {
            self.key(key);
            // Writing to a String can't fail.
            let _ = write!(self.out, "\"{shown}\"");
        }
    }

    fn shown_or_null(&mut self, key: &str, shown: Option<impl Display>) {
        match shown {
            Some(shown) => self.shown(key, Some(shown)),
            None => self.null(key),
        }
    }

    fn number(&mut self, key: &str, number: Option<u64>) {
        if let Some(number) = number {
            self.key(key);
            let _ = write!(self.out, "{}", number.min(MAX_INTEGER));
        }
    }

    fn list(&mut self, key: &str, texts: &[&str]) {
        self.key(key);
        self.out.push('[');
        for (number, text) in texts.iter().enumerate() {
            if number > 0 {
                self.out.push(',');
            }
            canonical::text(text, self.out);
        }
        self.out.push(']');
    }
}
