//! What gRPC reflection is going to serve.
#![allow(clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use proto::{DESCRIPTOR_SET, ENVOY_DESCRIPTOR_SET};

#[test]
fn own_descriptors_hold_the_admin_services() {
    assert_eq!(
        services(&decode(DESCRIPTOR_SET)),
        [
            "agent_gateway.admin.v1.Debug",
            "agent_gateway.admin.v1.Operations"
        ]
    );
}

#[test]
fn own_descriptors_keep_the_comments() {
    let set = decode(DESCRIPTOR_SET);
    let comments = set
        .file
        .iter()
        .filter_map(|file| file.source_code_info.as_ref());
    let locations = comments.flat_map(|info| &info.location);
    assert!(
        locations
            .filter_map(|location| location.leading_comments.as_deref())
            .any(|comment| comment.starts_with(" Answers questions about decisions."))
    );
}

#[test]
fn envoy_descriptors_hold_the_services_that_the_generated_types_speak() {
    assert_eq!(
        services(&decode(ENVOY_DESCRIPTOR_SET)),
        [
            envoy_types::pb::envoy::service::auth::v3::authorization_server::SERVICE_NAME,
            envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::SERVICE_NAME,
        ]
    );
}

#[test]
fn every_import_is_in_its_set() {
    for bytes in [DESCRIPTOR_SET, ENVOY_DESCRIPTOR_SET] {
        let set = decode(bytes);
        let names: BTreeSet<&str> = set.file.iter().map(FileDescriptorProto::name).collect();
        let imports: BTreeSet<&str> = set
            .file
            .iter()
            .flat_map(|file| &file.dependency)
            .map(String::as_str)
            .collect();
        assert_eq!(
            imports.difference(&names).collect::<Vec<_>>(),
            Vec::<&&str>::new()
        );
    }
}

fn decode(bytes: &[u8]) -> FileDescriptorSet {
    FileDescriptorSet::decode(bytes).expect("a descriptor set")
}

fn services(set: &FileDescriptorSet) -> Vec<String> {
    let files = set.file.iter();
    let mut names: Vec<String> = files
        .flat_map(|file| {
            file.service
                .iter()
                .map(|service| format!("{}.{}", file.package(), service.name()))
        })
        .collect();
    names.sort();
    names
}
