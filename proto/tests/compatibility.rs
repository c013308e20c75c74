//! What the protocol's version promises: all that was ever said in it is said the same way still.
//!
//! `protocol-N.txt` lists every field, value and method of protocol N, as peers that are out there know them. One
//! that is gone, or has another number or type, would be misunderstood by them, so it needs a
//! new protocol. One that is new goes onto the list, and is held to from then on.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tally_proto::{DESCRIPTORS, PROTOCOL};

/// The list of the protocol that is spoken. A new protocol begins a new one.
const LIST: &str = include_str!("data/protocol-1.txt");

fn field(message: &str, field: &FieldDescriptorProto) -> String {
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().trim_start_matches('.').to_owned(),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let many = if field.label() == Label::Repeated { "repeated " } else { "" };
    // A field that moves into or out of a choice is another one to a reader.
    let choice = match (field.proto3_optional(), field.oneof_index) {
        (true, _) => "optional ",
        (false, Some(_)) => "oneof ",
        (false, None) => "",
    };
    format!("{message}.{} = {}: {choice}{many}{kind}", field.name(), field.number())
}

fn message(package: &str, described: &DescriptorProto) -> Vec<String> {
    assert!(
        described.nested_type.is_empty() && described.enum_type.is_empty(),
        "this looks at none that are nested"
    );
    let name = format!("{package}.{}", described.name());
    described.field.iter().map(|one| field(&name, one)).collect()
}

fn values(package: &str, described: &EnumDescriptorProto) -> Vec<String> {
    let line = |value: &prost_types::EnumValueDescriptorProto| {
        format!("{package}.{}.{} = {}", described.name(), value.name(), value.number())
    };
    described.value.iter().map(line).collect()
}

/// All that can be said now.
fn said() -> BTreeSet<String> {
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
    let ours = files.iter().filter(|file| file.package() == "tally.v1");
    let mut lines = BTreeSet::new();
    for file in ours {
        let package = file.package();
        lines.extend(file.message_type.iter().flat_map(|one| message(package, one)));
        lines.extend(file.enum_type.iter().flat_map(|one| values(package, one)));
        for service in &file.service {
            lines.extend(service.method.iter().map(|method| {
                let stream = |on: bool| if on { "stream " } else { "" };
                format!(
                    "{package}.{}/{}({}{}) returns ({}{})",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type().trim_start_matches('.'),
                    stream(method.server_streaming()),
                    method.output_type().trim_start_matches('.')
                )
            }));
        }
    }
    lines
}

#[test]
fn what_an_older_peer_knows_is_as_it_was() {
    let (listed, said): (BTreeSet<String>, _) = (LIST.lines().map(str::to_owned).collect(), said());
    let changed: Vec<_> = listed.difference(&said).collect();
    assert!(
        changed.is_empty(),
        "peers of protocol {PROTOCOL} would misunderstand this, which is gone or different: {changed:#?}\n\
         Keep it, or raise PROTOCOL and begin tests/data/protocol-{}.txt (docs/compatibility.md).",
        PROTOCOL + 1
    );
    let new: Vec<_> = said.difference(&listed).cloned().collect();
    assert!(
        new.is_empty(),
        "new in protocol {PROTOCOL}. If older peers may ignore it, add to tests/data/protocol-{PROTOCOL}.txt:\n{}",
        new.join("\n")
    );
}

#[test]
fn a_number_or_a_name_is_never_used_twice() {
    let mut numbers = BTreeSet::new();
    for line in LIST.lines().filter(|line| !line.contains('/')) {
        let (name, rest) = line.split_once(" = ").unwrap();
        let number = rest.split(':').next().unwrap();
        let (owner, _) = name.rsplit_once('.').unwrap();
        assert!(numbers.insert((owner, number)), "{line}: the number has another meaning in the list");
    }
}

/// What only a newer peer says is skipped, wherever it stands.
#[test]
fn unknown_fields_are_skipped() {
    use tally_proto::v1::{Hello, RetainedState, WorkerMessage, worker_message};
    let retained = vec![RetainedState { run: 1, step: 2, digest: 3 }];
    let hello = Hello { protocol: PROTOCOL, name: "w".into(), retained, ..Hello::default() };
    let message = WorkerMessage { context: None, body: Some(worker_message::Body::Hello(hello.clone())) };
    // Field 999 in each of the four wire types that are in use.
    for unknown in [&b"\xb8\x3e\x01"[..], b"\xb9\x3e12345678", b"\xba\x3e\x03abc", b"\xbd\x3e1234"] {
        let inner = [hello.encode_to_vec(), unknown.to_vec()].concat();
        assert_eq!(Hello::decode(&inner[..]).unwrap(), hello, "{unknown:?}");
        let outer = [message.encode_to_vec(), unknown.to_vec()].concat();
        assert_eq!(WorkerMessage::decode(&outer[..]).unwrap(), message, "{unknown:?}");
    }
}
