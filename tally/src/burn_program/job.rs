//! What is trained: a Burn module, a batcher, data, and what is measured.

use std::sync::Arc;
use std::time::Instant;

use burn::data::dataloader::batcher::Batcher;
use burn::lr_scheduler::LrScheduler;
use burn::module::AutodiffModule;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, RmsPropConfig, SgdConfig};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use burn::train::metric::{Adaptor, ItemLazy, LossInput};
use burn::train::{InferenceStep, TrainStep};
use burn_flex::Flex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tally_coordinator::dataset::Dataset;
use tally_core::optimizer::{Algorithm, LrSchedule, OptimizerConfig};
use tally_numerics::random::{Purpose, Stream};
use tally_numerics::schema::{BadSchema, LossSpec, MetricKind, MetricSpec, Schema};
use tally_proto::convert::Microbatch;

use super::data::{self, Data, Items};
use super::metrics::{self, Ratio};
use super::module::Layout;
use super::optimizer::{IntoOptimizer, OptimizerSettings, ParameterGroup};
use crate::program::Defaults;

/// The name of the one loss of a Burn program.
pub(super) const LOSS: &str = "objective";

/// Which samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Those that are trained with.
    Train,
    /// Those of the test pass.
    Test,
}

/// What a Burn program trains, on one backend. [`job`] makes one.
pub trait Job<B: AutodiffBackend>: Send {
    /// How it is trained unless told otherwise.
    fn defaults(&self) -> Defaults;

    /// The optimizer of a run of `steps` steps unless told otherwise.
    ///
    /// # Errors
    /// If it cannot work, in one line.
    fn optimizer(&self, steps: u64) -> Result<OptimizerConfig, String>;

    /// Its losses and metrics.
    ///
    /// # Errors
    /// If a name is not valid.
    fn schema(&self) -> Result<Schema, BadSchema>;

    /// Where its tensors lie in a flat vector. Lazy parameters are initialised by it.
    ///
    /// # Errors
    /// If the model cannot be trained, in one line.
    fn layout(&self) -> Result<Layout, String>;

    /// The values of its tensors, the constant ones included.
    ///
    /// # Errors
    /// If they cannot be read as float32.
    fn values(&self, layout: &Layout) -> Result<Vec<f32>, String>;

    /// Takes these values for its trained tensors, and for the constant ones if they are given.
    fn load(&mut self, layout: &Layout, trained: &Tensor<B::InnerBackend, 1>, constants: Option<&[f32]>);

    /// Prepares for a run with this seed. If `local`, samples come as numbers only, and are read from this machine's
    /// data.
    fn prepare(&mut self, seed: u64, local: bool);

    /// Whether a microbatch can be read.
    ///
    /// # Errors
    /// If its bytes are no samples of the program.
    fn check(&self, samples: &Microbatch) -> anyhow::Result<()>;

    /// The forward and backward pass over a microbatch.
    ///
    /// # Errors
    /// If a sample cannot be read.
    fn gradient(
        &mut self,
        layout: &Layout,
        samples: &Microbatch,
        device: &B::Device,
    ) -> anyhow::Result<StepOutput<B::InnerBackend>>;

    /// The sums of the loss and the metrics over a microbatch of the test pass, in the schema's order.
    ///
    /// # Errors
    /// If a sample cannot be read, or a metric is not a number.
    fn evaluate(&mut self, samples: &Microbatch, device: &B::Device) -> anyhow::Result<Vec<f64>>;

    /// Trains with Burn's own optimizer, a batch after the other, and returns the seconds of each step. The model is as before
    /// then.
    ///
    /// # Errors
    /// If a sample cannot be read.
    fn plain_steps(&self, batches: &[Microbatch], device: &B::Device) -> anyhow::Result<Vec<f64>>;

    /// The samples as the coordinator deals them; only their numbers if workers have them as well (`local`).
    ///
    /// # Errors
    /// If they cannot be opened.
    fn samples(&self, split: Split, local: bool) -> anyhow::Result<Arc<dyn Dataset>>;

    /// Whether an item is the same after it was written and read as on its way to a worker.
    ///
    /// # Errors
    /// If it is not, or there is none with this number.
    fn check_item(&self, split: Split, id: u32) -> anyhow::Result<()>;

    /// What tells the samples from others.
    ///
    /// # Errors
    /// If they cannot be opened or read.
    fn fingerprint(&self, split: Split) -> anyhow::Result<String>;
}

/// What a microbatch gave.
pub struct StepOutput<I: burn::tensor::backend::Backend> {
    /// The gradient of its mean loss by each tensor, flat; `None` where the loss does not depend on it.
    pub gradients: Vec<Option<Tensor<I, 1>>>,
    /// Waits for the device, and returns the mean loss.
    pub loss: Box<dyn FnOnce() -> f64 + Send>,
    /// The weight of its samples.
    pub weight: f64,
}

type Augment<I> = dyn Fn(I, &mut Stream) -> I + Send + Sync;
type Weigh<I> = dyn Fn(&I) -> f64 + Send + Sync;
type Measure<S> = dyn Fn(&S) -> Ratio + Send + Sync;

/// A job of a Burn module `M` whose batches `C` makes of items `I`; `S` is what its steps put out, on the host.
///
/// Data is the one thing that must be named: [`train`](Self::train), and [`test`](Self::test) for a test pass after
/// each epoch.
pub struct JobBuilder<B: AutodiffBackend, M, I, C, S> {
    /// `None` only while values are loaded.
    model: Option<M>,
    batcher: C,
    train: Option<Data<I>>,
    test: Option<Data<I>>,
    metrics: Vec<(MetricSpec, Box<Measure<S>>)>,
    best: Option<String>,
    defaults: Defaults,
    optimizer: OptimizerSettings,
    augment: Option<Box<Augment<I>>>,
    weight: Option<Box<Weigh<I>>>,
    seed: u64,
    local: bool,
    backend: std::marker::PhantomData<fn(B)>,
}

/// What the test step of a module puts out, on the host.
type TestOutput<B, M> =
    <<<M as AutodiffModule<B>>::InnerModule as InferenceStep>::Output as ItemLazy>::ItemSync;

/// A job that trains `model` on batches that `batcher` makes.
///
/// The model is a Burn module with `TrainStep` and, for the test pass, `InferenceStep` on its inner module; their
/// outputs have a loss ([`Adaptor<LossInput>`]), as Burn's `ClassificationOutput` and `RegressionOutput` do. A step's
/// loss is the mean over its batch.
pub fn job<B, M, I, C>(model: M, batcher: C) -> JobBuilder<B, M, I, C, TestOutput<B, M>>
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + TrainStep + 'static,
    M::InnerModule: InferenceStep,
    C: Batcher<B, I, <M as TrainStep>::Input>
        + Batcher<B::InnerBackend, I, <M::InnerModule as InferenceStep>::Input>
        + 'static,
    I: Serialize + DeserializeOwned + 'static,
{
    JobBuilder {
        model: Some(model),
        batcher,
        train: None,
        test: None,
        metrics: Vec::new(),
        best: None,
        defaults: Defaults { epochs: 10, batch_size: 64, microbatches: 8 },
        optimizer: OptimizerSettings::default(),
        augment: None,
        weight: None,
        seed: 0,
        local: false,
        backend: std::marker::PhantomData,
    }
}

impl<B: AutodiffBackend, M, I, C, S> JobBuilder<B, M, I, C, S> {
    /// The samples to train with. `open` is called when they are first needed: a worker that is sent its samples never
    /// opens them.
    #[must_use]
    pub fn train<D: burn::data::dataset::Dataset<I> + 'static>(
        self,
        open: impl Fn() -> super::Result<D> + Send + Sync + 'static,
    ) -> Self {
        Self { train: Some(Data::new(open)), ..self }
    }

    /// The samples of the test pass. Without them the training samples are the test's as well.
    #[must_use]
    pub fn test<D: burn::data::dataset::Dataset<I> + 'static>(
        self,
        open: impl Fn() -> super::Result<D> + Send + Sync + 'static,
    ) -> Self {
        Self { test: Some(Data::new(open)), ..self }
    }

    /// What a sample weighs in means over several, such as the number of its tokens where the loss of a batch is the mean
    /// over its tokens; a number that is not negative. Without it all samples weigh the same.
    #[must_use]
    pub fn weight(self, weight: impl Fn(&I) -> f64 + Send + Sync + 'static) -> Self {
        Self { weight: Some(Box::new(weight)), ..self }
    }

    /// Changes each training sample before it is batched, with random numbers of its own: they are fixed by the run's
    /// seed, the step and the sample, so that they are the same on whatever worker computes with it.
    #[must_use]
    pub fn augment(self, change: impl Fn(I, &mut Stream) -> I + Send + Sync + 'static) -> Self {
        Self { augment: Some(Box::new(change)), ..self }
    }

    /// A metric of the test pass of which more is better, such as [`accuracy`](super::accuracy). The first one picks
    /// the best checkpoint. A name has lower-case letters, digits and `_`.
    #[must_use]
    pub fn metric(self, name: &str, measure: impl Fn(&S) -> Ratio + Send + Sync + 'static) -> Self {
        self.ratio(name, true, measure)
    }

    /// A metric of the test pass of which less is better.
    #[must_use]
    pub fn error_metric(self, name: &str, measure: impl Fn(&S) -> Ratio + Send + Sync + 'static) -> Self {
        self.ratio(name, false, measure)
    }

    fn ratio(
        mut self,
        name: &str,
        higher_is_better: bool,
        measure: impl Fn(&S) -> Ratio + Send + Sync + 'static,
    ) -> Self {
        let kind = MetricKind::Ratio { higher_is_better };
        let spec = MetricSpec { name: name.into(), label: name.replace('_', " "), kind };
        self.best.get_or_insert_with(|| name.into());
        self.metrics.push((spec, Box::new(measure)));
        self
    }

    /// Epochs to train, unless `--epochs` says otherwise.
    #[must_use]
    pub fn epochs(mut self, epochs: u32) -> Self {
        self.defaults.epochs = epochs;
        self
    }

    /// Samples of a step over all workers, unless `--batch-size` says otherwise.
    #[must_use]
    pub fn batch_size(mut self, samples: usize) -> Self {
        self.defaults.batch_size = samples;
        self
    }

    /// Microbatches that a step is cut into, a power of two, unless `--microbatches` says otherwise. It decides the
    /// bits, and bounds how many workers can compute at once.
    #[must_use]
    pub fn microbatches(mut self, count: u32) -> Self {
        self.defaults.microbatches = count;
        self
    }

    /// The optimizer, unless `--optimizer` says otherwise: one of Burn's configurations, or [`Lion`](super::Lion). Without
    /// it, SGD with a momentum of 0.9.
    #[must_use]
    pub fn optimizer(mut self, optimizer: impl IntoOptimizer) -> Self {
        self.optimizer.optimizer = Some(optimizer.into_optimizer());
        self
    }

    /// The learning rate at its peak, and how it goes on, unless `--learning-rate` and `--lr-schedule` say otherwise.
    #[must_use]
    pub fn learning_rate(mut self, peak: f32, schedule: LrSchedule) -> Self {
        self.optimizer.learning_rate = Some(peak);
        self.optimizer.lr_schedule = Some(schedule);
        self
    }

    /// The learning rates are those of one of Burn's schedulers, stepped once a step, unless `--lr-schedule` says otherwise.
    #[must_use]
    pub fn lr_scheduler(mut self, scheduler: impl LrScheduler + 'static) -> Self {
        self.optimizer.rates = Some(OptimizerSettings::scheduler(scheduler));
        self
    }

    /// Parameters that have a learning rate or a weight decay of their own, or are frozen. A parameter is in one group at
    /// most.
    #[must_use]
    pub fn group(mut self, group: ParameterGroup) -> Self {
        self.optimizer.groups.push(group);
        self
    }

    /// Vectors, such as biases and the scales of norms, do not decay.
    #[must_use]
    pub fn no_weight_decay_on_vectors(self) -> Self {
        self.group(ParameterGroup::new("vectors", |_, shape| shape.len() < 2).weight_decay(0.0))
    }

    /// Momentum, as PyTorch defines it, unless `--momentum` says otherwise.
    #[must_use]
    pub fn momentum(mut self, momentum: f32) -> Self {
        self.optimizer.momentum = Some(momentum);
        self
    }

    /// Steps over which the learning rate rises to its peak, unless `--warmup-steps` says otherwise.
    #[must_use]
    pub fn warmup_steps(mut self, steps: u64) -> Self {
        self.optimizer.warmup_steps = Some(steps);
        self
    }

    /// The gradient's global norm is clipped to this, unless `--clip-norm` says otherwise.
    #[must_use]
    pub fn clip_norm(mut self, norm: f32) -> Self {
        self.optimizer.clip_norm = Some(norm);
        self
    }
}

impl<B, M, I, C, S> JobBuilder<B, M, I, C, S>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    I: Serialize + DeserializeOwned + 'static,
{
    fn model(&self) -> &M {
        match &self.model {
            Some(model) => model,
            None => unreachable!("values were loaded"),
        }
    }

    fn data(&self, split: Split) -> anyhow::Result<Arc<dyn burn::data::dataset::Dataset<I>>> {
        let test = self.test.as_ref().filter(|_| split == Split::Test);
        let data = test
            .or(self.train.as_ref())
            .ok_or_else(|| anyhow::anyhow!("the job has no data: give it some with `.train(…)`"))?;
        data.dataset()
    }

    /// The weight of samples together.
    fn weigh(&self, items: &[I]) -> anyhow::Result<f64> {
        let Some(weight) = &self.weight else { return Ok(items.len() as f64) };
        let sum: f64 = items.iter().map(weight).sum();
        anyhow::ensure!(
            sum.is_finite() && sum >= 0.0,
            "the samples weigh {sum} together: a weight is at least 0"
        );
        Ok(sum)
    }

    /// The items of a microbatch: from their bytes, or from this machine's data if only their numbers came.
    fn items(&self, samples: &Microbatch, split: Split) -> anyhow::Result<Vec<I>> {
        if self.local {
            let dataset = self.data(split)?;
            return samples.ids().iter().map(|&id| data::get(&*dataset, id)).collect();
        }
        samples.items().map(data::decode).collect()
    }
}

impl<B, M, I, C, S> Job<B> for JobBuilder<B, M, I, C, S>
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + TrainStep + 'static,
    M::InnerModule: InferenceStep,
    C: Batcher<B, I, <M as TrainStep>::Input>
        + Batcher<B::InnerBackend, I, <M::InnerModule as InferenceStep>::Input>
        + 'static,
    I: Serialize + DeserializeOwned + 'static,
    <M as TrainStep>::Output: ItemLazy,
    <<M as TrainStep>::Output as ItemLazy>::ItemSync: Adaptor<LossInput<Flex>>,
    <M::InnerModule as InferenceStep>::Output: ItemLazy<ItemSync = S>,
    S: Adaptor<LossInput<Flex>> + Send + 'static,
{
    fn defaults(&self) -> Defaults {
        self.defaults
    }

    fn optimizer(&self, steps: u64) -> Result<OptimizerConfig, String> {
        self.optimizer.config(steps)
    }

    fn schema(&self) -> Result<Schema, BadSchema> {
        let loss = LossSpec { name: LOSS.into(), label: LOSS.into() };
        let metrics = self.metrics.iter().map(|(spec, _)| spec.clone()).collect();
        let schema = Schema::new(vec![loss], metrics, self.best.clone())?;
        Ok(if self.weight.is_some() { schema.weighted() } else { schema })
    }

    fn layout(&self) -> Result<Layout, String> {
        Layout::of::<B, M>(self.model(), &self.optimizer.groups)
    }

    fn values(&self, layout: &Layout) -> Result<Vec<f32>, String> {
        layout.values::<B, M>(self.model())
    }

    fn load(&mut self, layout: &Layout, trained: &Tensor<B::InnerBackend, 1>, constants: Option<&[f32]>) {
        self.model = self.model.take().map(|model| layout.load::<B, M>(model, trained, constants));
    }

    fn prepare(&mut self, seed: u64, local: bool) {
        (self.seed, self.local) = (seed, local);
    }

    fn check(&self, samples: &Microbatch) -> anyhow::Result<()> {
        if self.local {
            Ok(())
        } else {
            samples.items().try_for_each(|bytes| data::decode::<I>(bytes).map(drop))
        }
    }

    fn gradient(
        &mut self,
        layout: &Layout,
        samples: &Microbatch,
        device: &B::Device,
    ) -> anyhow::Result<StepOutput<B::InnerBackend>> {
        let mut items = self.items(samples, Split::Train)?;
        if let Some(augment) = &self.augment {
            let step = samples.place().0;
            let streams = samples
                .ids()
                .iter()
                .map(|&sample| Stream::new(self.seed, Purpose::Augmentation { step, sample }));
            items =
                items.into_iter().zip(streams).map(|(item, mut stream)| augment(item, &mut stream)).collect();
        }
        let weight = self.weigh(&items)?;
        let batch = <C as Batcher<B, I, <M as TrainStep>::Input>>::batch(&self.batcher, items, device);
        let before = layout.has_buffers().then(|| layout.buffers::<B, M>(self.model()));
        let output = TrainStep::step(self.model(), batch);
        let mut gradients = layout.gradients::<B, M>(self.model(), output.grads);
        if let Some(before) = before {
            // A running statistic's gradient is its change; the statistic itself changes when the step counts.
            let after = layout.buffers::<B, M>(self.model());
            for ((index, before), (_, after)) in before.iter().zip(after) {
                gradients[*index] = Some(after - before.clone());
            }
            layout.restore::<B, M>(self.model(), &before);
        }
        let item = output.item;
        Ok(StepOutput { gradients, loss: Box::new(move || metrics::loss(&item.sync())), weight })
    }

    fn evaluate(&mut self, samples: &Microbatch, device: &B::Device) -> anyhow::Result<Vec<f64>> {
        let items = self.items(samples, Split::Test)?;
        let (count, weight) = (items.len(), self.weigh(&items)?);
        let batch = <C as Batcher<B::InnerBackend, I, <M::InnerModule as InferenceStep>::Input>>::batch(
            &self.batcher,
            items,
            device,
        );
        let output = InferenceStep::step(&self.model().valid(), batch).sync();
        let mut sums = vec![metrics::loss(&output) * weight];
        if self.weight.is_some() {
            sums.push(weight);
        }
        for (spec, measure) in &self.metrics {
            let Ratio { numerator, denominator } = measure(&output);
            anyhow::ensure!(
                numerator.is_finite() && denominator.is_finite() && denominator >= 0.0,
                "the metric {} is {numerator} over {denominator} on a batch of {count} samples: both must be numbers, \
                 the denominator not below 0",
                spec.name
            );
            sums.extend([numerator, denominator]);
        }
        Ok(sums)
    }

    fn plain_steps(&self, batches: &[Microbatch], device: &B::Device) -> anyhow::Result<Vec<f64>> {
        let config = self.optimizer.config(batches.len() as u64).map_err(anyhow::Error::msg)?;
        let rate = f64::from(config.learning_rate);
        // Burn has no Lion; its RMSProp costs about as much.
        match config.algorithm {
            Algorithm::Sgd => {
                let mut momentum = MomentumConfig::new();
                (momentum.momentum, momentum.dampening) = (config.momentum.into(), 0.0);
                let sgd = SgdConfig::new().with_momentum(Some(momentum));
                self.plain_steps_by(sgd.init::<B, M>(), rate, batches, device)
            }
            Algorithm::Adam => self.plain_steps_by(AdamConfig::new().init::<B, M>(), rate, batches, device),
            Algorithm::AdamW => self.plain_steps_by(AdamWConfig::new().init::<B, M>(), rate, batches, device),
            Algorithm::RmsProp | Algorithm::Lion => {
                self.plain_steps_by(RmsPropConfig::new().init::<B, M>(), rate, batches, device)
            }
        }
    }

    fn samples(&self, split: Split, local: bool) -> anyhow::Result<Arc<dyn Dataset>> {
        Ok(Arc::new(Items::new(self.data(split)?, local)))
    }

    fn check_item(&self, split: Split, id: u32) -> anyhow::Result<()> {
        let bytes = data::encode(&data::get(&*self.data(split)?, id)?)?;
        let read: I = data::decode(&bytes)?;
        anyhow::ensure!(data::encode(&read)? == bytes, "item {id} is written differently after it was read");
        Ok(())
    }

    fn fingerprint(&self, split: Split) -> anyhow::Result<String> {
        data::fingerprint(&*self.data(split)?)
    }
}

impl<B, M, I, C, S> JobBuilder<B, M, I, C, S>
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + TrainStep + 'static,
    C: Batcher<B, I, <M as TrainStep>::Input> + 'static,
    I: Serialize + DeserializeOwned + 'static,
    <M as TrainStep>::Output: ItemLazy,
    <<M as TrainStep>::Output as ItemLazy>::ItemSync: Adaptor<LossInput<Flex>>,
{
    /// The seconds of each step of a plain loop with one of Burn's optimizers.
    fn plain_steps_by(
        &self,
        mut optimizer: impl burn::optim::Optimizer<M, B>,
        rate: f64,
        batches: &[Microbatch],
        device: &B::Device,
    ) -> anyhow::Result<Vec<f64>> {
        // A clone shares its running statistics with the model; a copy by way of the inner module does not.
        let mut model = M::from_inner(self.model().valid());
        let mut seconds = Vec::new();
        for samples in batches {
            let items = self.items(samples, Split::Train)?;
            let begun = Instant::now();
            let batch = <C as Batcher<B, I, <M as TrainStep>::Input>>::batch(&self.batcher, items, device);
            let output = TrainStep::step(&model, batch);
            model = optimizer.step(rate, model, output.grads);
            let _ = metrics::loss(&output.item.sync());
            seconds.push(begun.elapsed().as_secs_f64());
        }
        Ok(seconds)
    }
}
