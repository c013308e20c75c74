//! **TRUST-1** for messages: whatever bytes come, and whatever well-formed messages say,
//! they are refused or are what they must be; nothing panics.

#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use tally_numerics::schema::{LossSpec, MetricKind, MetricSpec, Schema};
use tally_numerics::wire::WireDtype;
use tally_proto::convert::{self, Microbatch};
use tally_proto::pool::Pool;
use tally_proto::span::{self, SpanKind};
use tally_proto::v1::{self, CoordinatorMessage, GradientDown, GradientUp, WorkerMessage};
use tally_proto::{MAX_FROM_WORKER, MAX_MICROBATCH, floats};

/// Decodes and encodes: what was understood is understood the same again.
fn decode<M: Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let again = message.encode_to_vec();
        // NaN is not equal to itself, so it is the bytes that are compared.
        assert_eq!(M::decode(&again[..]).map(|m| m.encode_to_vec()), Ok(again));
    }
}

/// Bytes that are often close to a message: tags and lengths that fit, now and then.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let field = (0u8..12, 0u8..6, vec(any::<u8>(), 0..40)).prop_map(|(number, kind, content)| {
        let mut field = vec![number << 3 | kind];
        if kind == 2 {
            field.push(content.len() as u8);
        }
        field.extend(content);
        field
    });
    prop_oneof![vec(any::<u8>(), 0..200), vec(field, 0..8).prop_map(|fields| fields.concat())]
}

fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(-1e300),
        0f64..10.0
    ]
}

fn time() -> impl Strategy<Value = f64> {
    prop_oneof![float(), 0f64..5.0, (0u8..5).prop_map(f64::from)]
}

fn tensor() -> impl Strategy<Value = v1::Tensor> {
    let size = prop_oneof![0u32..5, any::<u32>(), Just(u32::MAX), Just(1 << 16)];
    let kind = (any::<bool>(), any::<bool>(), prop_oneof![0u32..3, any::<u32>()]);
    (".{0,12}", vec(size, 0..5), float(), kind).prop_map(|(name, shape, bound, kind)| {
        let (constant, buffer, group) = kind;
        v1::Tensor { name, shape, bound, constant, buffer, group }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn trust_1_any_bytes_decode_or_do_not(bytes in bytes()) {
        decode::<WorkerMessage>(&bytes);
        decode::<GradientUp>(&bytes);
        decode::<CoordinatorMessage>(&bytes);
        decode::<GradientDown>(&bytes);
        decode::<v1::StatusReply>(&bytes);
    }

    #[test]
    fn trust_1_floats_have_exactly_the_length_asked_for(
        bytes in vec(any::<u8>(), 0..64), wanted in prop_oneof![0usize..20, Just(usize::MAX / 4)],
    ) {
        match floats::decode(WireDtype::F32, &bytes, wanted, &Pool::default()) {
            Ok(values) => {
                prop_assert_eq!(values.len(), wanted);
                prop_assert_eq!(&floats::copy(&values)[..], &bytes[..]);
            }
            Err(_) => prop_assert_ne!(bytes.len() as u128, 4 * wanted as u128),
        }
    }

    #[test]
    fn trust_1_samples_fit_together_or_are_refused(
        leaf: u32, test: bool, ids in vec(any::<u32>(), 0..4), lengths in vec(prop_oneof![0u32..5, any::<u32>()], 0..4),
        stray in 0usize..2,
    ) {
        let bytes = lengths.iter().map(|&length| length as usize % 64).sum::<usize>() + stray;
        let message = v1::Microbatch { leaf, test, ids: ids.clone(), items: vec![9; bytes].into(), lengths: lengths.clone() };
        let whole = lengths.iter().map(|&length| length as usize).sum::<usize>();
        let read = Microbatch::from_message(message);
        prop_assert_eq!(read.is_ok(), ids.len() == lengths.len() && whole == bytes);
        if let Ok(microbatch) = read {
            prop_assert!(microbatch.items().map(|item| item.len() as u32).eq(lengths));
        }
    }

    #[test]
    fn trust_1_losses_and_metrics_are_as_many_as_the_schema_has(sums in vec(float(), 0..6)) {
        let loss = |name: &str| LossSpec { name: name.into(), label: name.into() };
        let kind = MetricKind::Ratio { higher_is_better: true };
        let metric = MetricSpec { name: "right".into(), label: "right".into(), kind };
        let schema = Schema::new(vec![loss("a"), loss("b")], vec![metric], None).unwrap();
        if let Ok(read) = convert::losses(sums.clone(), 2) {
            // As many as there can be microbatches, and the sum is still a number.
            prop_assert!(sums.len() == 2 && read.scaled(4096.0).is_finite());
        }
        if let Ok(read) = convert::evaluated(sums, &schema) {
            // Losses may be NaN, metrics may not.
            prop_assert!(read.0.len() == 4 && read.0[2..].iter().all(|sum| sum.is_finite()));
        }
    }

    #[test]
    fn trust_1_spans_are_in_order_and_of_some_time(list in vec((0i32..10, any::<u32>(), time(), time()), 0..6)) {
        let message = list.into_iter().map(|(kind, leaves, start, end)| v1::Span { kind, leaves, start, end });
        if let Ok(spans) = span::spans(&message.collect::<Vec<_>>()) {
            for sends in [true, false] {
                let mut last = f64::NEG_INFINITY;
                for span in spans.iter().filter(|span| (span.kind == SpanKind::Send) == sends) {
                    prop_assert!(last <= span.start && span.seconds().is_finite() && span.seconds() >= 0.0);
                    last = span.end;
                }
            }
        }
    }

    #[test]
    fn trust_1_a_clock_shows_some_time(number: u64, received in time(), sent in time()) {
        if let Ok((received, sent)) = span::clock(&v1::ClockAnswer { number, received, sent }) {
            prop_assert!((sent - received).is_finite() && received <= sent);
        }
    }

    #[test]
    fn trust_1_a_manifest_is_one_or_is_refused(tensors in vec(tensor(), 0..6), device in ".{0,8}") {
        if let Ok(manifest) = convert::manifest(v1::ModelManifest { tensors, numerics_class: device.clone(), device, peer: None }) {
            prop_assert!(manifest.len() > 0 && manifest.len() <= tally_numerics::manifest::MAX_ELEMENTS);
            let last = manifest.tensors().len() - 1;
            prop_assert_eq!(manifest.range(last).end, manifest.len());
            prop_assert_eq!(convert::manifest(convert::offer(&manifest, String::new(), String::new())), Ok(manifest));
        }
    }
}

#[test]
fn trust_1_a_microbatch_has_a_largest_size() {
    let many = v1::Microbatch { ids: vec![0; MAX_MICROBATCH + 1], ..v1::Microbatch::default() };
    assert_eq!(Microbatch::from_message(many), Err(convert::BadMessage::TooManySamples(MAX_MICROBATCH + 1)));
}

/// An element of a list takes two bytes of a message, however large it is in memory.
#[test]
fn trust_1_a_message_takes_a_bounded_multiple_of_its_length() {
    let sizes = [
        size_of::<v1::Tensor>(),
        size_of::<v1::Receipt>(),
        size_of::<v1::RetainedState>(),
        size_of::<v1::Span>(),
        size_of::<String>(),
        size_of::<u32>(),
    ];
    let most = sizes.into_iter().max().unwrap_or(0) * MAX_FROM_WORKER / 2;
    assert!(most <= 64 << 20, "a message of {MAX_FROM_WORKER} bytes may take {most}");
}

#[test]
fn the_largest_messages_of_an_honest_worker_fit() {
    let context = Some(v1::MessageContext {
        run: u64::MAX,
        incarnation: u64::MAX,
        session: u64::MAX,
        step: u64::MAX,
        attempt: u32::MAX,
    });
    let data = vec![1; 4 * tally_numerics::CHUNK].into();
    let chunk = v1::gradient_up::Body::Chunk(v1::Chunk {
        node: u32::MAX,
        index: u32::MAX,
        data,
        slot: Some(u32::MAX),
    });
    assert!(GradientUp { context, body: Some(chunk) }.encoded_len() <= MAX_FROM_WORKER);
    let (name, shape) = ("n".repeat(64), vec![1 << 16; 4]);
    let tensor = v1::Tensor { name, shape, bound: 0.1, constant: true, buffer: true, group: 255 };
    let offer = v1::ModelManifest {
        tensors: vec![tensor; tally_numerics::manifest::MAX_TENSORS],
        device: "d".repeat(256),
        numerics_class: "k".repeat(256),
        peer: Some(v1::PeerEndpoint {
            address: "a".repeat(260),
            port: 65_535,
            certificate: vec![0; 32].into(),
            machine: "m".repeat(64),
        }),
    };
    let offer = v1::worker_message::Body::ModelManifest(offer);
    assert!(WorkerMessage { context, body: Some(offer) }.encoded_len() <= MAX_FROM_WORKER);
}
