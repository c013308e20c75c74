//! A Burn module as flat vectors: its tensors by name, its values, its gradients.
//!
//! A tensor's name is the path of fields to it, joined by dots, and tensors lie in the order of declaration. A
//! parameter that is used in two places (a tied one) is one tensor, named by its first path. `ParamId`s are random in
//! every process, so they stay here.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{BasicOps, Bool, DType, Int, Tensor, TensorData};
use sha2::{Digest as _, Sha256};
use tally_numerics::manifest::{Manifest, TensorSpec, hex};

/// Tensors that are not trained: frozen parameters, integers and truth values. Every process makes them itself.
#[derive(Clone, Debug, Default)]
pub struct Constants {
    /// Their names.
    pub names: Vec<String>,
    /// SHA-256 over their names and bytes.
    pub sha256: String,
}

/// A tensor of a module.
#[derive(Clone, Debug)]
struct Place {
    id: ParamId,
    range: Range<usize>,
}

/// Where a module's trained tensors lie in a flat vector.
#[derive(Clone, Debug)]
pub struct Layout {
    manifest: Manifest,
    places: Vec<Place>,
    by_id: HashMap<ParamId, usize>,
    constants: Constants,
}

impl Layout {
    /// The layout of a module. Lazy parameters are initialised by it.
    ///
    /// # Errors
    /// If it has nothing to train, or a tensor of another type than float32, in one line.
    pub fn of<B: AutodiffBackend, M: AutodiffModule<B>>(module: &M) -> Result<Self, String> {
        let mut found = Describe::default();
        module.visit(&mut found);
        if let Some(wrong) = found.wrong {
            return Err(wrong);
        }
        if found.trained.is_empty() {
            return Err("the model has no parameter that requires a gradient; there is nothing to train".into());
        }
        let specs = found.trained.iter().map(|(_, name, shape)| TensorSpec {
            name: name.clone(),
            shape: shape.iter().map(|&axis| axis as u32).collect(),
            bound: 0.0,
        });
        let manifest = Manifest::new(specs.collect()).map_err(|error| error.to_string())?;
        let places: Vec<Place> = (found.trained.iter().enumerate())
            .map(|(index, (id, ..))| Place { id: *id, range: manifest.range(index) })
            .collect();
        let constants = Constants { names: found.constants, sha256: hex(&found.hash.finalize()) };
        let by_id = places.iter().enumerate().map(|(index, place)| (place.id, index)).collect();
        Ok(Self { manifest, places, by_id, constants })
    }

    /// The trained tensors.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tensors that are not trained.
    #[must_use]
    pub fn constants(&self) -> &Constants {
        &self.constants
    }

    /// The trained values of the module that this layout was made of.
    ///
    /// # Errors
    /// The backend's message if it does not give them back.
    pub fn values<B: AutodiffBackend, M: AutodiffModule<B>>(&self, module: &M) -> Result<Vec<f32>, String> {
        let mut read = Read { layout: self, values: vec![0.0; self.manifest.len()], failed: None };
        module.visit(&mut read);
        read.failed.map_or(Ok(read.values), Err)
    }

    /// The module with these values for its trained tensors.
    pub fn load<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        module: M,
        flat: &Tensor<B::InnerBackend, 1>,
    ) -> M {
        module.map(&mut Load::<B> { layout: self, flat, loaded: HashMap::new() })
    }

    /// The gradients of a backward pass, flat, in the order of the tensors. A tensor that the loss does not depend on
    /// has none.
    pub fn gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        module: &M,
        gradients: GradientsParams,
    ) -> Vec<Option<Tensor<B::InnerBackend, 1>>> {
        let found = vec![None; self.places.len()];
        let mut gather = Gather::<B> { layout: self, gradients, found };
        module.visit(&mut gather);
        gather.found
    }
}

/// The path to what is visited.
#[derive(Debug, Default)]
struct Path(Vec<String>);

impl Path {
    fn name(&self) -> String {
        self.0.join(".")
    }
}

#[derive(Debug, Default)]
struct Describe {
    path: Path,
    seen: HashSet<ParamId>,
    trained: Vec<(ParamId, String, Vec<usize>)>,
    constants: Vec<String>,
    hash: Sha256,
    wrong: Option<String>,
}

impl Describe {
    fn constant(&mut self, id: ParamId, data: impl FnOnce() -> Result<TensorData, String>) {
        if !self.seen.insert(id) {
            return;
        }
        let name = self.path.name();
        match data() {
            Ok(data) => {
                let bytes = data.as_bytes();
                for part in [name.as_bytes(), format!("{:?}", data.shape).as_bytes(), bytes] {
                    self.hash.update((part.len() as u64).to_le_bytes());
                    self.hash.update(part);
                }
            }
            Err(error) => {
                self.wrong.get_or_insert(format!("the tensor {name} cannot be read: {error}"));
            }
        }
        self.constants.push(name);
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Describe {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.0.push(name.to_owned());
        if container == "Struct:BatchNorm" {
            let name = self.path.name();
            self.wrong.get_or_insert(format!(
                "{name} is a BatchNorm: its running statistics would depend on what each worker computed; use GroupNorm or \
                 LayerNorm"
            ));
        }
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.0.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let tensor = param.val();
        if !tensor.is_require_grad() {
            return self.constant(param.id, || data(tensor.inner()));
        }
        if self.seen.insert(param.id) {
            if tensor.dtype() != DType::F32 {
                let (name, dtype) = (self.path.name(), tensor.dtype());
                self.wrong.get_or_insert(format!(
                    "the parameter {name} is {dtype:?}; Tally trains float32 parameters, so build the model on a float32 \
                     backend"
                ));
            }
            self.trained.push((param.id, self.path.name(), tensor.dims().to_vec()));
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        self.constant(param.id, || data(param.val().inner()));
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<B, D, Bool>>) {
        self.constant(param.id, || data(param.val().inner()));
    }
}

struct Read<'a> {
    layout: &'a Layout,
    values: Vec<f32>,
    failed: Option<String>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Read<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(&index) = self.layout.by_id.get(&param.id) else { return };
        let into = &mut self.values[self.layout.places[index].range.clone()];
        match read(param.val().inner()) {
            Ok(values) => into.copy_from_slice(&values),
            Err(error) => self.failed = Some(error),
        }
    }
}

/// A tensor's values, row-major.
///
/// # Errors
/// The backend's message if it does not give them back as float32.
pub fn read<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>, String> {
    data(tensor)?.into_vec().map_err(|error| format!("{error:?}"))
}

fn data<B: Backend, const D: usize, K: BasicOps<B>>(tensor: Tensor<B, D, K>) -> Result<TensorData, String> {
    tensor.try_into_data().map_err(|error| error.to_string())
}

struct Load<'a, B: AutodiffBackend> {
    layout: &'a Layout,
    flat: &'a Tensor<B::InnerBackend, 1>,
    /// Tied parameters must stay one tensor: gradients are found by its id.
    loaded: HashMap<ParamId, Box<dyn Any>>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Load<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(&index) = self.layout.by_id.get(&param.id) else { return param };
        let (id, old, mapper) = param.consume();
        let tied = self.loaded.get(&id).and_then(|tensor| tensor.downcast_ref::<Tensor<B, D>>()).cloned();
        let tensor = tied.unwrap_or_else(|| {
            let part = self.flat.clone().slice([self.layout.places[index].range.clone()]);
            let tensor = Tensor::<B, D>::from_inner(part.reshape(old.dims())).require_grad();
            self.loaded.insert(id, Box::new(tensor.clone()));
            tensor
        });
        Param::from_mapped_value(id, tensor, mapper)
    }
}

struct Gather<'a, B: AutodiffBackend> {
    layout: &'a Layout,
    gradients: GradientsParams,
    found: Vec<Option<Tensor<B::InnerBackend, 1>>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Gather<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(&index) = self.layout.by_id.get(&param.id) else { return };
        if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
            let elements = self.layout.places[index].range.len();
            self.found[index] = Some(gradient.reshape([elements]));
        }
    }
}
