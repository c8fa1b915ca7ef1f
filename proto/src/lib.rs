//! Our own gRPC services, and the descriptor sets of ours and of Envoy's for gRPC reflection.
//!
//! The types of Envoy's services come from the envoy-types crate, not from here.
#![forbid(unsafe_code)]

/// The admin interface: decisions explained, what is held in memory, and the kill switch.
pub mod admin {
    /// Package `agent_gateway.admin.v1`; its .proto files document it.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("agent_gateway.admin.v1");
    }
}

/// Our own services as an encoded `google.protobuf.FileDescriptorSet`, with comments.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/own.bin"));

/// Envoy's external authorization and external processing, with all that they import, as an
/// encoded `google.protobuf.FileDescriptorSet`.
pub const ENVOY_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));
