//! What handling a byte, an element and a message costs here: from the processor time that five short runs
//! took, thread by thread. Only how long a thread takes to wake up is found from a step's time.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tally_capacity::{Costs, step_seconds};
use tally_numerics::wire::WireDtype;
use tally_numerics::{CHUNK, norm};
use tally_proto::convert::Microbatch;
use tally_worker::engine::Engine as _;
use tally_worker::engine::synthetic::{SyntheticEngine, SyntheticSpec};

use super::compare::cluster;
use super::measure::{Case, Measured, measure};
use crate::statistics::median;

/// The reference network's size.
pub const LARGE: usize = 6_402_764;
/// So few elements that a message is what costs.
const SMALL: usize = 1000;

/// What things cost on this machine, with the synthetic model's own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// As `coordinator plan --costs` takes it.
    pub costs: Costs,
    /// Seconds of a core for each element that the synthetic model makes of a large gradient.
    pub make_element: f64,
    /// The same of a gradient of one chunk, which fits a cache.
    pub make_small_element: f64,
    /// Seconds by which it sleeps longer than it means to.
    pub oversleep: f64,
}

/// The five runs.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Small, one worker.
    lone: Measured,
    /// Small, sixteen.
    many: Measured,
    /// Large, one worker and two spares, which only hear the sums.
    spares: Measured,
    /// Large, four workers.
    four: Measured,
    /// The same as bfloat16.
    halved: Measured,
}

fn case(workers: usize, parameters: usize, micros: u64, microbatches: u32, wire_dtype: WireDtype) -> Case {
    let model = format!("synthetic:parameters={parameters},us-per-sample={micros}");
    Case { workers, model, batch_size: 64, microbatches, wire_dtype, link: None }
}

/// Runs the five and works the costs out.
///
/// # Errors
/// If one can't be measured.
pub fn calibrate() -> anyhow::Result<Calibration> {
    let f32 = WireDtype::F32;
    let lone = case(1, SMALL, 0, 1, f32);
    let seen = Seen {
        lone: measure(&lone)?,
        many: measure(&case(16, SMALL, 0, 16, f32))?,
        spares: measure(&case(3, LARGE, 2000, 1, f32))?,
        four: measure(&case(4, LARGE, 8000, 4, f32))?,
        halved: measure(&case(4, LARGE, 8000, 4, WireDtype::Bf16))?,
    };
    let mut calibration = worked_out(&seen, norm_element());
    calibration.costs.wake = wake(&lone, &calibration, seen.lone.step);
    Ok(calibration)
}

/// Messages of a worker in a step of one chunk: a header, the chunk, a trailer and a confirmation
/// up; a commit, a plan, samples, the sum and its close down.
const MESSAGES: f64 = 9.0;

fn worked_out(seen: &Seen, norm_element: f64) -> Calibration {
    let Seen { lone, many, spares, four, halved } = seen;
    let (elements, bytes) = (LARGE as f64, 4.0 * LARGE as f64);
    // More workers' messages, and nothing else.
    let message = (many.cpu.coordinator - lone.cpu.coordinator) / (15.0 * MESSAGES);
    let driver_message = (many.cpu.driver - lone.cpu.driver) / (15.0 * MESSAGES);
    let worker_message = many.cpu.workers / (16.0 * MESSAGES);
    let driver_step = lone.cpu.driver - MESSAGES * driver_message;
    let worker_step = many.cpu.computing / 16.0;

    // A gradient up and a sum down, of each of four; of one of three, which all have the sum.
    let both = four.cpu.coordinator / 4.0 / bytes;
    let send_byte = half(spares.cpu.coordinator / bytes - both);
    let receive_byte = (both - send_byte).max(0.0);
    let worker_both = four.cpu.workers / 4.0 / bytes;
    let worker_receive_byte = half(spares.cpu.workers / bytes - worker_both);
    let worker_send_byte = (worker_both - worker_receive_byte).max(0.0);
    // Making a gradient and applying a sum.
    let computing = four.cpu.computing / 4.0 / elements;
    let apply_element = half(spares.cpu.computing / elements - computing);
    let make_element = (computing - apply_element).max(0.0);
    // No addition, and three.
    let update_element = (spares.cpu.driver / elements - norm_element).max(0.0);
    let add_element = ((four.cpu.driver - spares.cpu.driver) / 3.0 / elements).max(0.0);

    // Three additions and a sum that goes out; half the bytes.
    let round_element = ((halved.cpu.driver - four.cpu.driver) / 4.0 / elements).max(0.0);
    let unpack = (halved.cpu.coordinator - four.cpu.coordinator / 2.0) / 4.0 / elements;
    let costs = Costs {
        receive_byte,
        send_byte,
        message,
        driver_message,
        driver_step,
        add_element,
        norm_element,
        update_element,
        worker_send_byte,
        worker_receive_byte,
        worker_message,
        worker_step,
        apply_element,
        round_element,
        unpack_element: unpack.max(0.0),
        wake: 0.0,
    };
    Calibration { costs, make_element, make_small_element: make_small_element(), oversleep: oversleep() }
}

fn half(of: f64) -> f64 {
    (of / 2.0).max(0.0)
}

/// Seconds for each element of a norm.
fn norm_element() -> f64 {
    let values = vec![0.5f32; CHUNK];
    let times = (0..50).map(|_| {
        let started = Instant::now();
        black_box(norm::sum_of_squares(black_box(&values)));
        started.elapsed().as_secs_f64() / CHUNK as f64
    });
    median(times)
}

/// Seconds for each element of a synthetic gradient of one chunk.
fn make_small_element() -> f64 {
    let spec = SyntheticSpec { parameters: CHUNK, ..Default::default() };
    let mut engine = SyntheticEngine::new(spec, tally_mnist::schema());
    let samples = Microbatch::new([(1, Cow::Borrowed(&[][..]))]);
    let mut out = vec![0.0; CHUNK];
    let times = (0..50).map(|_| {
        let started = Instant::now();
        engine.gradient(&samples, 1.0, &mut out, &mut |_| ()).expect("it computes nothing that can fail");
        started.elapsed().as_secs_f64() / CHUNK as f64
    });
    median(times)
}

/// Seconds by which a sleep of a millisecond is longer.
fn oversleep() -> f64 {
    let meant = Duration::from_millis(1);
    let times = (0..50).map(|_| {
        let started = Instant::now();
        std::thread::sleep(meant);
        (started.elapsed() - meant).as_secs_f64()
    });
    median(times)
}

/// What has to be waited for each waking, so that the smallest step takes as long as it did.
fn wake(case: &Case, calibration: &Calibration, seconds: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1e-3);
    for _ in 0..40 {
        let wake = 0.5 * (low + high);
        let costs = Costs { wake, ..calibration.costs };
        let longer = step_seconds(&cluster(case, &Calibration { costs, ..*calibration })) > seconds;
        (low, high) = if longer { (low, wake) } else { (wake, high) };
    }
    low
}
