//! A Burn module as flat vectors: its tensors by name, its values, its gradients.
//!
//! A tensor's name is the path of fields to it, joined by dots. Tensors lie in the order of declaration, group by group. A
//! parameter that is used in two places (a tied one) is one tensor, named by its first path. Behind the parameters lie the
//! running statistics, such as BatchNorm's. Tensors that are not
//! trained (frozen parameters, integers, truth values) come last, as float32. `ParamId`s are random in every process,
//! so they stay here.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{BasicOps, Bool, DType, Int, Tensor, TensorData};
use tally_numerics::manifest::{Manifest, TensorSpec};

use super::optimizer::{GroupKind, ParameterGroup};

/// A tensor of a module.
#[derive(Clone, Debug)]
struct Place {
    id: ParamId,
    range: Range<usize>,
}

/// Where a module's tensors lie in a flat vector.
#[derive(Clone, Debug)]
pub struct Layout {
    manifest: Manifest,
    places: Vec<Place>,
    by_id: HashMap<ParamId, usize>,
}

impl Layout {
    /// The layout of a module. Lazy parameters are initialised by it.
    ///
    /// # Errors
    /// If it has nothing to train, or a tensor of another type than float32; if a group has no parameter, or two have the
    /// same one. In one line.
    pub fn of<B: AutodiffBackend, M: AutodiffModule<B>>(
        module: &M,
        groups: &[ParameterGroup],
    ) -> Result<Self, String> {
        let mut found = Describe { buffer_ids: buffer_ids::<B, M>(module), ..Describe::default() };
        module.visit(&mut found);
        if let Some(wrong) = found.wrong {
            return Err(wrong);
        }
        let mut all = Vec::new();
        let mut matched = vec![false; groups.len()];
        // Groups are numbered from 1, without the frozen ones.
        let mut next = 0;
        let numbers: Vec<Option<u32>> = groups
            .iter()
            .map(|group| {
                next += u32::from(group.kind != GroupKind::Frozen);
                (group.kind != GroupKind::Frozen).then_some(next)
            })
            .collect();
        for (id, name, shape) in found.trained {
            let of: Vec<usize> =
                (0..groups.len()).filter(|&group| (groups[group].matches)(&name, &shape)).collect();
            if let [first, second, ..] = of[..] {
                return Err(format!(
                    "the parameter {name} is in two groups, {:?} and {:?}: a parameter is in one at most",
                    groups[first].name, groups[second].name
                ));
            }
            of.iter().for_each(|&group| matched[group] = true);
            let kind = match of.first().map_or(Some(0), |&group| numbers[group]) {
                Some(group) => Kind::Trained(group),
                None => Kind::Constant,
            };
            all.push((id, name, shape, kind));
        }
        if let Some(empty) = matched.iter().position(|matched| !matched) {
            return Err(format!(
                "the group {:?} has no parameter: no parameter that requires a gradient has such a name or shape (running \
                 statistics and parameters under `no_grad()` belong to no group)",
                groups[empty].name
            ));
        }
        for (tensors, kind) in [(found.buffers, Kind::Buffer), (found.constants, Kind::Constant)] {
            all.extend(tensors.into_iter().map(|(id, name, shape)| (id, name, shape, kind)));
        }
        all.sort_by_key(|(.., kind)| *kind);
        if !all.iter().any(|(.., kind)| matches!(kind, Kind::Trained(_))) {
            let frozen = groups.iter().any(|group| group.kind == GroupKind::Frozen);
            let why = if frozen {
                "every parameter is in a frozen group"
            } else {
                "the model has no parameter that requires a gradient"
            };
            return Err(format!("{why}; there is nothing to train"));
        }
        let specs = all.iter().map(|(_, name, shape, kind)| {
            let shape: Vec<u32> = shape.iter().map(|&axis| axis as u32).collect();
            let spec = TensorSpec::new(name.clone(), &shape, 0.0);
            match *kind {
                Kind::Trained(group) => TensorSpec { group, ..spec },
                Kind::Buffer => TensorSpec { buffer: true, ..spec },
                Kind::Constant => TensorSpec { constant: true, ..spec },
            }
        });
        let manifest = Manifest::new(specs.collect()).map_err(|error| error.to_string())?;
        let places: Vec<Place> = (all.iter().enumerate())
            .map(|(index, (id, ..))| Place { id: *id, range: manifest.range(index) })
            .collect();
        let by_id = places.iter().enumerate().map(|(index, place)| (place.id, index)).collect();
        Ok(Self { manifest, places, by_id })
    }

    /// Whether the tensor of this parameter is a running statistic, and which it is.
    fn buffer(&self, id: ParamId) -> Option<usize> {
        let index = *self.by_id.get(&id)?;
        self.manifest.tensors()[index].buffer.then_some(index)
    }

    /// Whether the module has running statistics.
    #[must_use]
    pub fn has_buffers(&self) -> bool {
        self.manifest.parameters_len() < self.manifest.trained_len()
    }

    /// The running statistics of a module, by their places in the list of tensors. What a forward pass left pending is
    /// taken in first.
    pub fn buffers<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        module: &M,
    ) -> Vec<(usize, Tensor<B::InnerBackend, 1>)> {
        let _ = module.valid();
        let mut gather = GatherBuffers::<B> { layout: self, found: Vec::new() };
        module.visit(&mut gather);
        gather.found
    }

    /// Gives a module's running statistics these values.
    pub fn restore<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        module: &M,
        buffers: &[(usize, Tensor<B::InnerBackend, 1>)],
    ) {
        // Clones share their running statistics.
        let _ = module.clone().map(&mut Restore::<B> { layout: self, buffers });
    }

    /// The tensors, the trained ones first.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The values of the module that this layout was made of.
    ///
    /// # Errors
    /// If the backend does not give them back, or an integer is too large for float32.
    pub fn values<B: AutodiffBackend, M: AutodiffModule<B>>(&self, module: &M) -> Result<Vec<f32>, String> {
        let mut read = Read { layout: self, values: vec![0.0; self.manifest.len()], failed: None };
        module.visit(&mut read);
        read.failed.map_or(Ok(read.values), Err)
    }

    /// The module with these values for its trained tensors, and for the constant ones if they are given.
    pub fn load<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        module: M,
        trained: &Tensor<B::InnerBackend, 1>,
        constants: Option<&[f32]>,
    ) -> M {
        // Running statistics that a forward pass left pending would come after the loaded ones.
        if self.has_buffers() {
            let _ = module.valid();
        }
        module.map(&mut Load::<B> { layout: self, trained, constants, loaded: HashMap::new() })
    }

    /// Where the trained tensor of this parameter lies.
    fn trained(&self, id: ParamId) -> Option<usize> {
        let index = *self.by_id.get(&id)?;
        (self.places[index].range.end <= self.manifest.trained_len()).then_some(index)
    }

    /// The gradients of a backward pass, flat, in the order of the tensors. A tensor that the loss does not depend on
    /// has none.
    pub fn gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        module: &M,
        gradients: GradientsParams,
    ) -> Vec<Option<Tensor<B::InnerBackend, 1>>> {
        let found = vec![None; self.manifest.tensors().iter().filter(|tensor| !tensor.constant).count()];
        let mut gather = Gather::<B> { layout: self, gradients, found };
        module.visit(&mut gather);
        gather.found
    }
}

/// What a tensor is to training, in the order in which tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A parameter of this group.
    Trained(u32),
    /// A running statistic.
    Buffer,
    /// Not trained.
    Constant,
}

/// The ids of a module's running statistics. They keep their ids when a module is mapped; parameters take those that the
/// mapper gives them.
fn buffer_ids<B: AutodiffBackend, M: AutodiffModule<B>>(module: &M) -> HashSet<ParamId> {
    struct Ids(HashSet<ParamId>);
    impl<B: AutodiffBackend> ModuleVisitor<B> for Ids {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if !param.val().is_require_grad() {
                self.0.insert(param.id);
            }
        }
    }
    struct NewIds;
    impl<B: AutodiffBackend> ModuleMapper<B> for NewIds {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let (_, tensor, mapper) = param.consume();
            Param::from_mapped_value(ParamId::new(), tensor, mapper)
        }
    }
    let [mut before, mut after] = [(); 2].map(|()| Ids(HashSet::new()));
    module.visit(&mut before);
    module.clone().map(&mut NewIds).visit(&mut after);
    before.0.intersection(&after.0).copied().collect()
}

struct GatherBuffers<'a, B: AutodiffBackend> {
    layout: &'a Layout,
    found: Vec<(usize, Tensor<B::InnerBackend, 1>)>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for GatherBuffers<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(index) = self.layout.buffer(param.id) else { return };
        if self.found.iter().all(|(found, _)| *found != index) {
            let elements = self.layout.places[index].range.len();
            self.found.push((index, param.val().inner().reshape([elements])));
        }
    }
}

struct Restore<'a, B: AutodiffBackend> {
    layout: &'a Layout,
    buffers: &'a [(usize, Tensor<B::InnerBackend, 1>)],
}

impl<B: AutodiffBackend> ModuleMapper<B> for Restore<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let index = self.layout.buffer(param.id);
        let values = self.buffers.iter().find(|(of, _)| Some(*of) == index);
        let Some((_, values)) = values else { return param };
        let (id, old, mapper) = param.consume();
        let tensor = Tensor::from_inner(values.clone().reshape(old.dims()));
        Param::from_mapped_value(id, tensor, mapper)
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
    /// The ids of running statistics.
    buffer_ids: HashSet<ParamId>,
    buffers: Vec<(ParamId, String, Vec<usize>)>,
    constants: Vec<(ParamId, String, Vec<usize>)>,
    wrong: Option<String>,
}

impl Describe {
    fn constant(&mut self, id: ParamId, shape: Vec<usize>) {
        if self.seen.insert(id) {
            self.constants.push((id, self.path.name(), shape));
        }
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Describe {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.0.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.0.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let tensor = param.val();
        let is_buffer = self.buffer_ids.contains(&param.id);
        if !tensor.is_require_grad() && !is_buffer {
            return self.constant(param.id, tensor.dims().to_vec());
        }
        if self.seen.insert(param.id) {
            if tensor.dtype() != DType::F32 {
                let (name, dtype) = (self.path.name(), tensor.dtype());
                self.wrong.get_or_insert(format!(
                    "the parameter {name} is {dtype:?}; Tally trains float32 parameters, so build the model on a float32 \
                     backend"
                ));
            }
            let list = if is_buffer { &mut self.buffers } else { &mut self.trained };
            list.push((param.id, self.path.name(), tensor.dims().to_vec()));
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        self.constant(param.id, param.val().dims().to_vec());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<B, D, Bool>>) {
        self.constant(param.id, param.val().dims().to_vec());
    }
}

struct Read<'a> {
    layout: &'a Layout,
    values: Vec<f32>,
    failed: Option<String>,
}

impl Read<'_> {
    /// Takes the values of a tensor as float32, which must hold each exactly.
    fn take(&mut self, id: ParamId, data: Result<TensorData, String>) {
        let Some(&index) = self.layout.by_id.get(&id) else { return };
        let name = &self.layout.manifest.tensors()[index].name;
        let into = &mut self.values[self.layout.places[index].range.clone()];
        match data {
            Ok(data) => {
                for (into, value) in into.iter_mut().zip(data.iter::<f64>()) {
                    *into = value as f32;
                    if f64::from(*into) != value && !value.is_nan() {
                        self.failed =
                            Some(format!("the tensor {name} has {value}, which float32 cannot hold"));
                    }
                }
            }
            Err(error) => self.failed = Some(format!("the tensor {name} cannot be read: {error}")),
        }
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Read<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.take(param.id, data(param.val().inner()));
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        self.take(param.id, data(param.val().inner()));
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<B, D, Bool>>) {
        self.take(param.id, data(param.val().inner().int()));
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
    trained: &'a Tensor<B::InnerBackend, 1>,
    constants: Option<&'a [f32]>,
    /// Tied parameters must stay one tensor: gradients are found by its id.
    loaded: HashMap<ParamId, Box<dyn Any>>,
}

impl<B: AutodiffBackend> Load<'_, B> {
    /// The values of a constant tensor, if they are to be loaded.
    fn constant(&self, id: ParamId) -> Option<&[f32]> {
        let range = &self.layout.places[*self.layout.by_id.get(&id)?].range;
        let first = self.layout.manifest.trained_len();
        (range.start >= first)
            .then(|| self.constants.map(|all| &all[range.start - first..range.end - first]))?
    }
}

impl<B: AutodiffBackend> ModuleMapper<B> for Load<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if let Some(values) = self.constant(param.id) {
            let values = values.to_vec();
            let (id, old, mapper) = param.consume();
            let data = TensorData::new(values, old.dims());
            return Param::from_mapped_value(id, Tensor::from_data(data, &old.device()), mapper);
        }
        let Some(index) = self.layout.trained(param.id) else { return param };
        let (id, old, mapper) = param.consume();
        let tied = self.loaded.get(&id).and_then(|tensor| tensor.downcast_ref::<Tensor<B, D>>()).cloned();
        let is_buffer = self.layout.manifest.tensors()[index].buffer;
        let tensor = tied.unwrap_or_else(|| {
            let part = self.trained.clone().slice([self.layout.places[index].range.clone()]);
            let tensor = Tensor::<B, D>::from_inner(part.reshape(old.dims()));
            let tensor = if is_buffer { tensor } else { tensor.require_grad() };
            self.loaded.insert(id, Box::new(tensor.clone()));
            tensor
        });
        Param::from_mapped_value(id, tensor, mapper)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<B, D, Int>>) -> Param<Tensor<B, D, Int>> {
        let Some(values) = self.constant(param.id) else { return param };
        let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
        let (id, old, mapper) = param.consume();
        let data = TensorData::new(values, old.dims());
        Param::from_mapped_value(id, Tensor::from_data(data, &old.device()), mapper)
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<B, D, Bool>>) -> Param<Tensor<B, D, Bool>> {
        let Some(values) = self.constant(param.id) else { return param };
        let values: Vec<bool> = values.iter().map(|&value| value != 0.0).collect();
        let (id, old, mapper) = param.consume();
        let data = TensorData::new(values, old.dims());
        Param::from_mapped_value(id, Tensor::from_data(data, &old.device()), mapper)
    }
}

struct Gather<'a, B: AutodiffBackend> {
    layout: &'a Layout,
    gradients: GradientsParams,
    found: Vec<Option<Tensor<B::InnerBackend, 1>>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Gather<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(index) = self.layout.trained(param.id) else { return };
        if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
            let elements = self.layout.places[index].range.len();
            self.found[index] = Some(gradient.reshape([elements]));
        }
    }
}
