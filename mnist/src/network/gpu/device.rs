//! A GPU: its memory, copies, and kernels.
//!
//! All work goes to a stream. One stream computes, one brings samples up, and one brings results down. Gradients by weights
//! may have a fourth. A stream does its work in the order in which it is given. Between streams events keep the order, and the
//! caller says where. cudarc would keep that order itself, with several calls to the driver for each argument of each
//! kernel; [`cuda_probe::context`] turns this off.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::AnyBitPattern;
use cudarc::driver::sys::{CUdevice_attribute, CUevent_flags, CUfunction_attribute_enum, CUresult};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr as _, DriverError,
    LaunchConfig, PinnedHostSlice, Profiler, PushKernelArg as _, result,
};
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};
use sha2::{Digest as _, Sha256};
use tally_worker::cuda_probe;

/// What a call to the driver gave.
pub type Outcome<T> = Result<T, DriverError>;

/// What GPUs the kernels are compiled for, by compute capability: the newest of them that the GPU and the run-time compiler know.
/// From 80 on (Ampere) there are copies that don't pass through registers, units for TF32 and bfloat16, and the shared memory.
const CAPABILITIES: [usize; 2] = [90, 80];
/// The versions of PTX that such kernels need, for a driver that is older than the run-time compiler: those with instructions that
/// only one capability has, and others.
const PTX_VERSIONS: [&str; 2] = ["8.0", "7.8"];

/// What a kernel is given.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A pointer.
    Place(Place),
    /// A pointer to nothing.
    Null,
    /// `int`
    Int(i32),
    /// `u64`
    Long(u64),
    /// `float`
    Float(f32),
}

/// Where something lies in a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    address: u64,
    /// Bytes from there to the memory's end.
    bytes: usize,
}

/// Memory of a device.
#[derive(Debug)]
pub struct Memory {
    _bytes: CudaSlice<u8>,
    place: Place,
}

/// Page-locked memory of the host, which the device copies from and to by itself.
#[derive(Debug)]
pub struct Pinned {
    bytes: PinnedHostSlice<u8>,
    /// When the last copy is over.
    copied: CudaEvent,
}

/// Page-locked memory that the device writes in parts, one after the other. A part can be read as soon as it has landed.
#[derive(Debug)]
pub struct Landing {
    bytes: PinnedHostSlice<u8>,
    /// The end of each part's last copy.
    copied: Vec<CudaEvent>,
}

/// A GPU with the kernels of a program.
#[derive(Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    /// The stream that computes.
    pub compute: Arc<CudaStream>,
    /// The stream that computes gradients by weights: `compute`, or one of its own.
    pub weights: Arc<CudaStream>,
    /// The stream that brings up.
    pub up: Arc<CudaStream>,
    /// The stream that brings down.
    pub down: Arc<CudaStream>,
    kernels: HashMap<String, CudaFunction>,
    /// Dynamic shared memory that each kernel was allowed, where that is more than is allowed anyway.
    most_shared: HashMap<String, Cell<usize>>,
    /// Beginnings and ends of the work that was timed. None if no work is to be timed.
    timed: RefCell<Option<Vec<[CudaEvent; 2]>>>,
    _module: Arc<CudaModule>,
}

/// A GPU whose program is not compiled yet.
#[derive(Debug)]
pub struct Found {
    context: Arc<CudaContext>,
    /// Bytes of shared memory of a processor, of which one block can have all but a kilobyte.
    pub shared: usize,
    /// Its compute capability, major times ten plus minor.
    pub capability: usize,
}

impl Place {
    /// So many elements of `T` further on.
    ///
    /// # Panics
    /// If that is past the memory's end.
    #[must_use]
    pub fn after<T>(self, elements: usize) -> Self {
        let skip = elements * size_of::<T>();
        assert!(skip <= self.bytes, "{skip} bytes into memory of {}", self.bytes);
        Self { address: self.address + skip as u64, bytes: self.bytes - skip }
    }

    /// # Panics
    /// If there are fewer bytes from here on.
    fn holds(self, bytes: usize) -> u64 {
        assert!(bytes <= self.bytes, "{bytes} bytes in memory of {}", self.bytes);
        self.address
    }
}

impl Memory {
    /// Its start.
    #[must_use]
    pub fn start(&self) -> Place {
        self.place
    }
}

impl Pinned {
    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.num_bytes()
    }

    /// What is in it, once all copies are over.
    ///
    /// # Errors
    /// As the driver says, of a copy or of what was before it.
    pub fn read<T: AnyBitPattern>(&self, elements: usize) -> Outcome<&[T]> {
        self.copied.synchronize()?;
        Ok(bytemuck::cast_slice(&self.bytes.as_slice()?[..elements * size_of::<T>()]))
    }

    /// The same to be written.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write<T: AnyBitPattern + bytemuck::NoUninit>(&mut self, elements: usize) -> Outcome<&mut [T]> {
        self.copied.synchronize()?;
        Ok(bytemuck::cast_slice_mut(&mut self.bytes.as_mut_slice()?[..elements * size_of::<T>()]))
    }
}

impl Landing {
    /// Waits for the copy of part `index`, and gives the bytes up to its end. The caller has waited for the earlier parts.
    ///
    /// # Errors
    /// As the driver says, of a copy or of the work before it.
    pub fn up_to(&self, index: usize, end: usize) -> Outcome<&[u8]> {
        self.copied[index].synchronize()?;
        Ok(&self.bytes.as_slice()?[..end])
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // The device may still be at it. An error will be told to whoever uses the device next.
        for copied in &self.copied {
            let _ = copied.synchronize();
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The device may still be at it. An error will be told to whoever uses the device next.
        let _ = self.copied.synchronize();
    }
}

impl Found {
    /// GPU number `ordinal`. The driver is there; that was asked before.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(ordinal: usize) -> Outcome<Self> {
        let context = cuda_probe::context(ordinal)?;
        let shared = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR;
        let shared = usize::try_from(context.attribute(shared)?).unwrap_or(0);
        let (major, minor) = context.compute_capability()?;
        let capability = usize::try_from(10 * major + minor).unwrap_or(0);
        Ok(Self { context, shared, capability })
    }

    /// Compiles a program whose kernels are `names`. With `own` the program may use instructions that only GPUs of this
    /// capability have. With `beside` gradients by weights get a stream of their own.
    ///
    /// # Errors
    /// What the run-time compiler or the driver said.
    pub fn compile(self, source: &str, names: &[String], own: bool, beside: bool) -> Result<Device, String> {
        let ptx = compiled(source, self.capability, own)?;
        self.load(&ptx, names, beside).map_err(|error| error.to_string())
    }

    fn load(self, ptx: &str, names: &[String], beside: bool) -> Outcome<Device> {
        let context = self.context;
        let module = match context.load_module(Ptx::from_src(ptx)) {
            Err(DriverError(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION)) => {
                context.load_module(Ptx::from_src(lowered(ptx)))?
            }
            module => module?,
        };
        let kernels = names.iter().map(|name| Ok((name.clone(), module.load_function(name)?)));
        let kernels = kernels.collect::<Outcome<HashMap<_, _>>>()?;
        let most_shared = names.iter().map(|name| (name.clone(), Cell::new(48 * 1024))).collect();
        let [compute, up, down] = [context.new_stream()?, context.new_stream()?, context.new_stream()?];
        let weights = if beside { context.new_stream()? } else { Arc::clone(&compute) };
        let timed = RefCell::new(None);
        Ok(Device { context, compute, weights, up, down, kernels, most_shared, timed, _module: module })
    }
}

/// A program as PTX. A process compiles it once. If `TALLY_CACHE_DIR` names a directory, later processes find it there.
fn compiled(source: &str, capability: usize, own: bool) -> Result<Arc<str>, String> {
    static ALL: Mutex<Vec<([u8; 32], Arc<str>)>> = Mutex::new(Vec::new());
    let name =
        Sha256::new().chain_update(format!("{capability} {own}\n")).chain_update(source).finalize().into();
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, ptx)) = all.iter().find(|(known, _)| *known == name) {
        return Ok(Arc::clone(ptx));
    }
    let directory = std::env::var_os("TALLY_CACHE_DIR").filter(|directory| !directory.is_empty());
    let file = directory.map(|directory| kept(Path::new(&directory), &name));
    // A compiler that stands in for NVIDIA's writes no PTX.
    let known = file.as_ref().and_then(|file| fs::read_to_string(file).ok());
    let ptx: Arc<str> = match known.filter(|ptx| ptx.contains(".version ")) {
        Some(ptx) => ptx.into(),
        None => {
            let ptx = compile(source, capability, own)?;
            if let Some(Err(error)) = file.map(|file| keep(&file, &ptx)) {
                tracing::debug!("the compiled kernels are not kept: {error}");
            }
            ptx.into()
        }
    };
    all.push((name, Arc::clone(&ptx)));
    Ok(ptx)
}

/// The file of a compiled program.
fn kept(directory: &Path, name: &[u8; 32]) -> PathBuf {
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(format!("kernels-{name}.ptx"))
}

/// Writes a file whole or not at all, because other processes may read it meanwhile.
fn keep(file: &Path, text: &str) -> std::io::Result<()> {
    fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    let own = file.with_extension(std::process::id().to_string());
    fs::write(&own, text)?;
    fs::rename(own, file)
}

/// Compiles a program to PTX for a GPU of this capability, with the instructions that only such GPUs have if `own`.
fn compile(source: &str, capability: usize, own: bool) -> Result<String, String> {
    let mut said = String::from("they need 80 or more");
    let suits = |&known: &usize| if own { known == capability } else { known <= capability };
    for known in CAPABILITIES.into_iter().filter(suits) {
        let architecture = format!("--gpu-architecture=compute_{known}{}", if own { "a" } else { "" });
        let options = vec![architecture, "--std=c++17".into()];
        let options = CompileOptions { fmad: Some(false), options, ..CompileOptions::default() };
        match compile_ptx_with_opts(source, options) {
            Ok(ptx) => {
                tracing::info!(
                    "the kernels are compiled for compute capability {known}, the GPU has {capability}"
                );
                return Ok(ptx.to_src());
            }
            // An old compiler does not know a new GPU.
            Err(CompileError::CompileError { nvrtc, log, .. }) => {
                let log = log.to_string_lossy();
                let line = log.lines().find(|line| line.contains("error")).unwrap_or("it says no more");
                said = format!("{nvrtc:?}: {}", line.trim());
            }
            Err(error) => said = error.to_string(),
        }
    }
    Err(format!("the kernels do not compile for a GPU of compute capability {capability}: {said}"))
}

/// The same program, said to be of the oldest version that has all it uses.
fn lowered(ptx: &str) -> String {
    let [own, others] = PTX_VERSIONS;
    let version = if ptx.contains(".target sm_90a") { own } else { others };
    let line = |line: &str| match line.strip_prefix(".version ") {
        Some(_) => format!(".version {version}\n"),
        None => format!("{line}\n"),
    };
    ptx.lines().map(line).collect()
}

impl Device {
    /// Memory for so many elements of `T`, with anything in it.
    ///
    /// # Errors
    /// As the driver says: there may not be so much.
    pub fn memory<T>(&self, elements: usize) -> Outcome<Memory> {
        let length = elements.max(1) * size_of::<T>();
        // SAFETY: bytes of any value are bytes; whoever reads them wrote them before.
        let bytes = unsafe { self.compute.alloc::<u8>(length) }?;
        let address = bytes.device_ptr(&self.compute).0;
        Ok(Memory { place: Place { address, bytes: length }, _bytes: bytes })
    }

    /// Page-locked memory for so many bytes.
    ///
    /// # Errors
    /// As the driver says.
    pub fn pinned(&self, bytes: usize) -> Outcome<Pinned> {
        // SAFETY: bytes of any value are bytes.
        let bytes = unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes.max(1), 0) }?;
        Ok(Pinned { bytes, copied: self.event()? })
    }

    /// Page-locked memory of so many bytes for so many parts.
    ///
    /// # Errors
    /// As the driver says.
    pub fn landing(&self, bytes: usize, parts: usize) -> Outcome<Landing> {
        // SAFETY: bytes of any value are bytes.
        let bytes = unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes.max(1), 0) }?;
        Ok(Landing { bytes, copied: (0..parts).map(|_| self.event()).collect::<Outcome<_>>()? })
    }

    /// Has a stream copy part `index` down, from `from` to the bytes `range` of `to`.
    ///
    /// # Errors
    /// As the driver says.
    pub fn land(
        &self,
        stream: &CudaStream,
        from: Place,
        to: &mut Landing,
        index: usize,
        range: Range<usize>,
    ) -> Outcome<()> {
        self.context.bind_to_thread()?;
        let address = from.holds(range.len());
        let Landing { bytes, copied } = to;
        copied[index].synchronize()?;
        let host = &mut bytes.as_mut_slice()?[range];
        // SAFETY: both are equally long. No part is read, and no memory freed, before the part's event.
        unsafe { result::memcpy_dtoh_async(host, address, stream.cu_stream()) }?;
        copied[index].record(stream)
    }

    /// Times the computing stream from the beginning to the end of `work`, if work is to be timed.
    ///
    /// # Errors
    /// As the driver says, or as `work` does.
    pub fn timed<T>(&self, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        if self.timed.borrow().is_none() {
            return work();
        }
        let event = || self.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let [start, end] = [event()?, event()?];
        start.record(&self.compute)?;
        let made = work()?;
        end.record(&self.compute)?;
        if let Some(all) = self.timed.borrow_mut().as_mut() {
            all.push([start, end]);
        }
        Ok(made)
    }

    /// Milliseconds of the work that was timed since the last call. The first call returns 0 and starts the timing.
    ///
    /// # Errors
    /// As the driver says.
    pub fn milliseconds(&self) -> Outcome<f64> {
        let all = self.timed.replace(Some(Vec::new())).unwrap_or_default();
        all.iter().try_fold(0.0, |sum, [start, end]| Ok(sum + f64::from(start.elapsed_ms(end)?)))
    }

    /// Starts a profiler that waits for this call, if there is one. The profiler stops when the returned value is dropped.
    ///
    /// # Errors
    /// As the driver says.
    pub fn profiler(&self) -> Outcome<Profiler> {
        self.context.bind_to_thread()?;
        Profiler::new()
    }

    /// An event, to be recorded in a stream and waited for.
    ///
    /// # Errors
    /// As the driver says.
    pub fn event(&self) -> Outcome<CudaEvent> {
        self.context.new_event(None)
    }

    /// Has a stream copy the first `bytes` of `from` to `to`.
    ///
    /// # Errors
    /// As the driver says.
    pub fn upload(&self, stream: &CudaStream, from: &mut Pinned, bytes: usize, to: Place) -> Outcome<()> {
        self.context.bind_to_thread()?;
        let address = to.holds(bytes);
        let host = &from.write::<u8>(bytes)?[..];
        // SAFETY: both are as long as `bytes`, and `from` is neither written nor freed before its event.
        unsafe { result::memcpy_htod_async(address, host, stream.cu_stream()) }?;
        from.copied.record(stream)
    }

    /// Has a stream copy `bytes` of `from` to the start of `to`.
    ///
    /// # Errors
    /// As the driver says.
    pub fn download(&self, stream: &CudaStream, from: Place, bytes: usize, to: &mut Pinned) -> Outcome<()> {
        self.context.bind_to_thread()?;
        let address = from.holds(bytes);
        let host = to.write::<u8>(bytes)?;
        // SAFETY: both are as long as `bytes`, and `to` is neither read nor freed before its event.
        unsafe { result::memcpy_dtoh_async(host, address, stream.cu_stream()) }?;
        to.copied.record(stream)
    }

    /// Has the computing stream copy within the device.
    ///
    /// # Errors
    /// As the driver says.
    pub fn copy(&self, from: Place, bytes: usize, to: Place) -> Outcome<()> {
        self.context.bind_to_thread()?;
        // SAFETY: both are as long as `bytes`.
        unsafe {
            result::memcpy_dtod_async(to.holds(bytes), from.holds(bytes), bytes, self.compute.cu_stream())
        }
    }

    /// Has the computing stream write zeros.
    ///
    /// # Errors
    /// As the driver says.
    pub fn clear(&self, place: Place, bytes: usize) -> Outcome<()> {
        self.context.bind_to_thread()?;
        // SAFETY: there are so many bytes.
        unsafe { result::memset_d8_async(place.holds(bytes), 0, bytes, self.compute.cu_stream()) }
    }

    /// Gives a kernel to the computing stream, as [`launch_in`](Self::launch_in) does.
    ///
    /// # Errors
    /// As the driver says.
    ///
    /// # Panics
    /// If the program has no such kernel.
    pub fn launch(
        &self,
        kernel: &str,
        grid: [usize; 2],
        threads: usize,
        shared: usize,
        values: &[Value],
    ) -> Outcome<()> {
        self.launch_in(&self.compute, kernel, grid, threads, shared, values)
    }

    /// Gives a kernel to a stream: `grid` blocks of `threads`, each with `shared` bytes of dynamic shared
    /// memory. `values` are the arguments that the kernel's source lists.
    ///
    /// # Errors
    /// As the driver says.
    ///
    /// # Panics
    /// If the program has no such kernel.
    pub fn launch_in(
        &self,
        stream: &CudaStream,
        kernel: &str,
        grid: [usize; 2],
        threads: usize,
        shared: usize,
        values: &[Value],
    ) -> Outcome<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let function = &self.kernels[kernel];
        let allowed = &self.most_shared[kernel];
        if shared > allowed.get() {
            let which = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(which, i32::try_from(shared).unwrap_or(i32::MAX))?;
            allowed.set(shared);
        }
        let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let config = LaunchConfig {
            grid_dim: (word(grid[0]), word(grid[1]), 1),
            block_dim: (word(threads), 1, 1),
            shared_mem_bytes: word(shared),
        };
        let mut arguments = stream.launch_builder(function);
        for value in values {
            match value {
                Value::Place(place) => arguments.arg(&place.address),
                Value::Null => arguments.arg(&0u64),
                Value::Int(value) => arguments.arg(value),
                Value::Long(value) => arguments.arg(value),
                Value::Float(value) => arguments.arg(value),
            };
        }
        // SAFETY: the kernels of this program stay within what their arguments name; that they are given what they list is
        // tested by running each of them.
        unsafe { arguments.launch(config) }.map(|_| ())
    }
}

impl From<&Memory> for Value {
    fn from(memory: &Memory) -> Self {
        Self::Place(memory.start())
    }
}

impl From<Place> for Value {
    fn from(place: Place) -> Self {
        Self::Place(place)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Long(value)
    }
}

/// Numbers of the host are `int` to a kernel, which none of them comes near the end of.
impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(i32::try_from(value).unwrap_or(i32::MAX))
    }
}

/// Values of several types, as a kernel lists them.
macro_rules! values {
    ($($value:expr),* $(,)?) => { [$($crate::network::gpu::device::Value::from($value)),*] };
}
pub(super) use values;

/// Whether the device had not enough memory.
pub fn is_for_want_of_memory(error: &DriverError) -> bool {
    error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}
