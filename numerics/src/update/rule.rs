//! The optimizers, operation by operation, so that every device rounds alike (**REP-1**).
//!
//! This is the one text of the formulas. The kernels of GPUs repeat it in their own languages, and are held to its bits.
//! `fma(a, b, c)` is `a·b + c` rounded once; every other operation is rounded by itself. For each element with parameter
//! `p`, gradient `g` of the batch's mean loss (clipped) and the optimizer's moments, primed when new:
//!
//! ```text
//! d = weight_decay = 0 ? g : fma(weight_decay, p, g)
//!
//! SGD       v' = fma(momentum, v, d·gradient)
//!           p' = fma(−learning_rate, nesterov ? fma(momentum, v', d) : v', p)
//! Adam      m' = fma(beta1, m, gradient1·d)
//!           v' = fma(beta2, v, gradient2·(d·d))
//!           w' = amsgrad ? max(w, v') : v'
//!           p' = fma(−step_size, m' / fma(√w', correction, epsilon), p·keep)
//! RMSProp   s' = fma(alpha, s, gradient·(d·d))
//!           a' = fma(alpha, a, gradient·d)                  (centered)
//!           r  = centered ? max(0, fma(−a', a', s')) : s'
//!           q  = d / (√r + epsilon)
//!           b' = fma(momentum, b, q)                        (with momentum)
//!           p' = fma(−learning_rate, with momentum ? b' : q, p)
//! Lion      p' = fma(−learning_rate, sign(fma(beta1, m, gradient1·g)), p·keep)
//!           m' = fma(beta2, m, gradient2·g)
//! mean      p' = p + g
//! ```
//!
//! They are PyTorch's `SGD`, `Adam`, `AdamW` and `RMSprop`, and Lion as its authors define it (Chen and others: Symbolic
//! discovery of optimization algorithms, 2023). What depends on the step and not on the element (`step_size`, with its
//! bias correction; `keep = 1 − learning_rate·weight_decay`) is computed once, in double, where the step is planned.
//! `mean` updates buffers, such as BatchNorm's running statistics: their "gradient" is the samples' mean change.

/// The most moments that an optimizer keeps for an element.
pub const MAX_MOMENTS: usize = 3;

/// SGD with momentum, for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// The step's learning rate.
    pub learning_rate: f32,
    /// How much of the velocity is kept.
    pub momentum: f32,
    /// How much of the gradient comes in: 1 − dampening, and 1 in the first step.
    pub gradient: f32,
    /// How much of the parameter is added to the gradient.
    pub weight_decay: f32,
    /// Nesterov's momentum.
    pub nesterov: bool,
}

/// Adam and AdamW, for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// The learning rate over the first moment's bias correction: `rate / (1 − beta1^t)`.
    pub step_size: f32,
    /// How much of the first moment is kept.
    pub beta1: f32,
    /// 1 − `beta1`.
    pub gradient1: f32,
    /// How much of the second moment is kept.
    pub beta2: f32,
    /// 1 − `beta2`.
    pub gradient2: f32,
    /// The second moment's bias correction: `1 / √(1 − beta2^t)`.
    pub correction: f32,
    /// Keeps the denominator from zero.
    pub epsilon: f32,
    /// How much of the parameter is added to the gradient (Adam's decay).
    pub weight_decay: f32,
    /// How much of the parameter is kept: 1 − rate·decay (AdamW's decay).
    pub keep: f32,
    /// A parameter decays only where its sign is the first moment's.
    pub cautious: bool,
    /// The greatest second moment so far counts.
    pub amsgrad: bool,
}

/// RMSProp, for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    /// The step's learning rate.
    pub learning_rate: f32,
    /// How much of the mean square is kept.
    pub alpha: f32,
    /// 1 − `alpha`.
    pub gradient: f32,
    /// Keeps the denominator from zero.
    pub epsilon: f32,
    /// How much of the velocity is kept; without momentum, there is none.
    pub momentum: f32,
    /// How much of the parameter is added to the gradient.
    pub weight_decay: f32,
    /// The mean gradient's square is taken off the mean square.
    pub centered: bool,
}

/// Lion, for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    /// The step's learning rate.
    pub learning_rate: f32,
    /// How much of the moment is in the direction.
    pub beta1: f32,
    /// 1 − `beta1`.
    pub gradient1: f32,
    /// How much of the moment is kept.
    pub beta2: f32,
    /// 1 − `beta2`.
    pub gradient2: f32,
    /// How much of the parameter is kept: 1 − rate·decay.
    pub keep: f32,
}

/// How the elements of a group are updated in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// SGD with momentum.
    Sgd(Sgd),
    /// Adam and AdamW.
    Adam(Adam),
    /// RMSProp.
    RmsProp(RmsProp),
    /// Lion.
    Lion(Lion),
    /// The samples' mean change is added; moments stay.
    Mean,
}

impl Rule {
    /// How many moments an element has.
    #[must_use]
    pub fn moments(&self) -> usize {
        match self {
            Self::Sgd(_) | Self::Lion(_) => 1,
            Self::Adam(adam) => 2 + usize::from(adam.amsgrad),
            Self::RmsProp(rms) => 1 + usize::from(rms.centered) + usize::from(rms.momentum > 0.0),
            Self::Mean => 0,
        }
    }
}

/// A rule as a kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelRule {
    /// Which formula: 0 SGD, 1 Adam, 2 RMSProp, 3 Lion, 4 the mean.
    pub formula: u32,
    /// Its switches: bit 0 is `nesterov`, `cautious` or `centered`, bit 1 `amsgrad` or RMSProp's momentum.
    pub switches: u32,
    /// Its numbers, in the order of the rule's fields.
    pub numbers: [f32; 9],
}

impl From<Rule> for KernelRule {
    fn from(rule: Rule) -> Self {
        let coded = |formula, switches: [bool; 2], own: &[f32]| {
            let mut numbers = [0.0; 9];
            numbers[..own.len()].copy_from_slice(own);
            Self { formula, switches: u32::from(switches[0]) | u32::from(switches[1]) << 1, numbers }
        };
        match rule {
            Rule::Sgd(Sgd { learning_rate, momentum, gradient, weight_decay, nesterov }) => {
                coded(0, [nesterov, false], &[learning_rate, momentum, gradient, weight_decay])
            }
            Rule::Adam(adam) => {
                let moments = [adam.step_size, adam.beta1, adam.gradient1, adam.beta2, adam.gradient2];
                let rest = [adam.correction, adam.epsilon, adam.weight_decay, adam.keep];
                coded(1, [adam.cautious, adam.amsgrad], &[&moments[..], &rest].concat())
            }
            Rule::RmsProp(RmsProp {
                learning_rate,
                alpha,
                gradient,
                epsilon,
                momentum,
                weight_decay,
                centered,
            }) => coded(
                2,
                [centered, momentum > 0.0],
                &[learning_rate, alpha, gradient, epsilon, momentum, weight_decay],
            ),
            Rule::Lion(Lion { learning_rate, beta1, gradient1, beta2, gradient2, keep }) => {
                coded(3, [false; 2], &[learning_rate, beta1, gradient1, beta2, gradient2, keep])
            }
            Rule::Mean => coded(4, [false; 2], &[]),
        }
    }
}

/// A rule for one element: from the gradient, the parameter and the moments to the new parameter and moments.
pub(super) trait Element<const K: usize>: Copy {
    /// Whether an element takes so few operations that its digest is best taken at once.
    const LIGHT: bool = false;

    /// `g` is the gradient.
    fn step(self, g: f32, p: f32, moments: [f32; K]) -> (f32, [f32; K]);
}

/// A rule for gradients that are scaled first.
#[derive(Clone, Copy)]
pub(super) struct Scaled<E> {
    pub rule: E,
    pub scale: f32,
}

impl<const K: usize, E: Element<K>> Element<K> for Scaled<E> {
    const LIGHT: bool = E::LIGHT;

    #[inline(always)]
    fn step(self, g: f32, p: f32, moments: [f32; K]) -> (f32, [f32; K]) {
        self.rule.step(g * self.scale, p, moments)
    }
}

/// A rule for gradients that are scaled first, and then clipped to ±`limit`.
#[derive(Clone, Copy)]
pub(super) struct Clipped<E> {
    pub rule: E,
    pub scale: f32,
    pub limit: f32,
}

impl<const K: usize, E: Element<K>> Element<K> for Clipped<E> {
    const LIGHT: bool = E::LIGHT;

    #[inline(always)]
    fn step(self, g: f32, p: f32, moments: [f32; K]) -> (f32, [f32; K]) {
        let g = g * self.scale;
        let g = if g > self.limit {
            self.limit
        } else if g < -self.limit {
            -self.limit
        } else {
            g
        };
        self.rule.step(g, p, moments)
    }
}

/// The gradient with a decaying parameter's part.
#[inline(always)]
fn decayed(weight_decay: f32, p: f32, g: f32) -> f32 {
    if weight_decay == 0.0 { g } else { weight_decay.mul_add(p, g) }
}

/// SGD with momentum and nothing else, which has fewer operations.
#[derive(Clone, Copy)]
pub(super) struct PlainSgd {
    learning_rate: f32,
    momentum: f32,
}

impl Sgd {
    /// The same without what it has not.
    pub(super) fn plain(self) -> Option<PlainSgd> {
        let Self { learning_rate, momentum, gradient, weight_decay, nesterov } = self;
        let is_plain = gradient == 1.0 && weight_decay == 0.0 && !nesterov;
        is_plain.then_some(PlainSgd { learning_rate, momentum })
    }
}

impl Element<1> for PlainSgd {
    const LIGHT: bool = true;

    #[inline(always)]
    fn step(self, g: f32, p: f32, [v]: [f32; 1]) -> (f32, [f32; 1]) {
        let v = self.momentum.mul_add(v, g);
        ((-self.learning_rate).mul_add(v, p), [v])
    }
}

impl Element<1> for Sgd {
    #[inline(always)]
    fn step(self, g: f32, p: f32, [v]: [f32; 1]) -> (f32, [f32; 1]) {
        let d = decayed(self.weight_decay, p, g);
        let v = self.momentum.mul_add(v, d * self.gradient);
        let u = if self.nesterov { self.momentum.mul_add(v, d) } else { v };
        ((-self.learning_rate).mul_add(u, p), [v])
    }
}

impl Adam {
    /// The new moments and, from the second that counts, the new parameter.
    #[inline(always)]
    fn moved(self, d: f32, p: f32, m: f32, v: f32, greatest: impl Fn(f32) -> f32) -> (f32, f32, f32, f32) {
        let m = self.beta1.mul_add(m, self.gradient1 * d);
        let v = self.beta2.mul_add(v, self.gradient2 * (d * d));
        let w = greatest(v);
        let q = m / w.sqrt().mul_add(self.correction, self.epsilon);
        let decays = !self.cautious || (p >= 0.0) == (m >= 0.0);
        let kept = if decays { p * self.keep } else { p };
        ((-self.step_size).mul_add(q, kept), m, v, w)
    }
}

impl Element<2> for Adam {
    #[inline(always)]
    fn step(self, g: f32, p: f32, [m, v]: [f32; 2]) -> (f32, [f32; 2]) {
        let d = decayed(self.weight_decay, p, g);
        let (p, m, v, _) = self.moved(d, p, m, v, |v| v);
        (p, [m, v])
    }
}

impl Element<3> for Adam {
    #[inline(always)]
    fn step(self, g: f32, p: f32, [m, v, w]: [f32; 3]) -> (f32, [f32; 3]) {
        let d = decayed(self.weight_decay, p, g);
        let (p, m, v, w) = self.moved(d, p, m, v, |v| if w > v { w } else { v });
        (p, [m, v, w])
    }
}

impl RmsProp {
    #[inline(always)]
    fn square(self, d: f32, s: f32) -> f32 {
        self.alpha.mul_add(s, self.gradient * (d * d))
    }

    #[inline(always)]
    fn centered(self, d: f32, s: f32, a: f32) -> (f32, f32) {
        let a = self.alpha.mul_add(a, self.gradient * d);
        let r = (-a).mul_add(a, s);
        (a, if r > 0.0 { r } else { 0.0 })
    }
}

impl Element<1> for RmsProp {
    #[inline(always)]
    fn step(self, g: f32, p: f32, [s]: [f32; 1]) -> (f32, [f32; 1]) {
        let d = decayed(self.weight_decay, p, g);
        let s = self.square(d, s);
        let q = d / (s.sqrt() + self.epsilon);
        ((-self.learning_rate).mul_add(q, p), [s])
    }
}

/// With momentum, or centered: the second moment is the velocity, or the mean gradient.
impl Element<2> for RmsProp {
    #[inline(always)]
    fn step(self, g: f32, p: f32, [s, second]: [f32; 2]) -> (f32, [f32; 2]) {
        let d = decayed(self.weight_decay, p, g);
        let s = self.square(d, s);
        if self.centered {
            let (a, r) = self.centered(d, s, second);
            let q = d / (r.sqrt() + self.epsilon);
            ((-self.learning_rate).mul_add(q, p), [s, a])
        } else {
            let b = self.momentum.mul_add(second, d / (s.sqrt() + self.epsilon));
            ((-self.learning_rate).mul_add(b, p), [s, b])
        }
    }
}

impl Element<3> for RmsProp {
    #[inline(always)]
    fn step(self, g: f32, p: f32, [s, b, a]: [f32; 3]) -> (f32, [f32; 3]) {
        let d = decayed(self.weight_decay, p, g);
        let s = self.square(d, s);
        let (a, r) = self.centered(d, s, a);
        let b = self.momentum.mul_add(b, d / (r.sqrt() + self.epsilon));
        ((-self.learning_rate).mul_add(b, p), [s, b, a])
    }
}

impl Element<1> for Lion {
    #[inline(always)]
    fn step(self, g: f32, p: f32, [m]: [f32; 1]) -> (f32, [f32; 1]) {
        let u = self.beta1.mul_add(m, self.gradient1 * g);
        let sign = if u > 0.0 {
            1.0
        } else if u < 0.0 {
            -1.0
        } else {
            0.0
        };
        let m = self.beta2.mul_add(m, self.gradient2 * g);
        ((-self.learning_rate).mul_add(sign, p * self.keep), [m])
    }
}

/// The samples' mean change is added.
#[derive(Clone, Copy)]
pub(super) struct Mean;

impl<const K: usize> Element<K> for Mean {
    #[inline(always)]
    fn step(self, g: f32, p: f32, moments: [f32; K]) -> (f32, [f32; K]) {
        (p + g, moments)
    }
}
