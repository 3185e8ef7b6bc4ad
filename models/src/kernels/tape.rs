//! A record of a pass' ops, and its backward pass.
//!
//! candle's backward pass makes a tensor of zeros for each argument of each op and adds the op's gradient to it in another
//! tensor, on one thread: for a decoder a tenth of a training step. Inside [`recorded`] ops are recorded here instead, a
//! gradient is what the one op that reads the tensor gives, and what an op has read is freed as soon as its gradients are
//! there. To candle the whole pass is one op of all that went into it, so that `backward` gives the same gradients.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, TensorId, bail,
};

use super::elementwise;

thread_local! {
    /// Of the pass that this thread runs.
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Runs a pass with its ops recorded: the same result, with the same gradients.
pub fn recorded(pass: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    let (result, tape) = {
        let _outer = Replaced::by(Some(Tape::default()));
        (pass()?, TAPE.take())
    };
    match tape {
        Some(tape) if !tape.steps.is_empty() && result.track_op() => tape.into_one_op(result),
        _ => Ok(result),
    }
}

/// Puts back what stood in this thread's place before.
struct Replaced(Option<Tape>);

impl Replaced {
    fn by(tape: Option<Tape>) -> Self {
        Self(TAPE.replace(tape))
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        TAPE.set(self.0.take());
    }
}

/// Applies an op: recorded where a pass is, by candle elsewhere. Arguments are contiguous.
pub fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    match is_recorded(&[x]) {
        true => record([x], Op::One(Box::new(op))),
        false => untaped(|| x.apply_op1(op)),
    }
}

/// [`apply1`] of two.
pub fn apply2(x: &Tensor, y: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    match is_recorded(&[x, y]) {
        true => record([x, y], Op::Two(Box::new(op))),
        false => untaped(|| x.apply_op2(y, op)),
    }
}

/// [`apply1`] of three.
pub fn apply3(x: &Tensor, y: &Tensor, z: &Tensor, op: impl CustomOp3 + Send + Sync + 'static) -> Result<Tensor> {
    match is_recorded(&[x, y, z]) {
        true => record([x, y, z], Op::Three(Box::new(op))),
        false => untaped(|| x.apply_op3(y, z, op)),
    }
}

fn is_recorded(args: &[&Tensor]) -> bool {
    TAPE.with_borrow(Option::is_some) && args.iter().any(|arg| arg.track_op())
}

/// Runs an op without any tape: while it waits for other threads, this one may take up another pass.
fn untaped<R>(op: impl FnOnce() -> R) -> R {
    let _tape = Replaced::by(None);
    op()
}

fn record<const N: usize>(args: [&Tensor; N], op: Op) -> Result<Tensor> {
    let result = untaped(|| op.run(&args))?;
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            args.iter().for_each(|arg| tape.read(arg));
            tape.made.insert(result.id());
            tape.steps.push(Step { op, args: args.map(Tensor::clone).to_vec(), result: result.clone() });
        }
    });
    Ok(result)
}

enum Op {
    One(Box<dyn CustomOp1 + Send + Sync>),
    Two(Box<dyn CustomOp2 + Send + Sync>),
    Three(Box<dyn CustomOp3 + Send + Sync>),
    /// candle's ops, from what was recorded before to the step's result.
    Candles,
}

impl Op {
    /// The result, as a variable: ops give gradients of what is one, and candle looks for none behind it.
    fn run(&self, args: &[&Tensor]) -> Result<Tensor> {
        let places: Vec<_> = args.iter().map(|arg| arg.storage_and_layout()).collect();
        let cpu = |i: usize| match &*places[i].0 {
            Storage::Cpu(storage) => Ok(storage),
            _ => bail!("a recorded op was given a tensor on {:?}", args[i].device().location()),
        };
        let layout = |i: usize| places[i].1;
        let (storage, shape) = match self {
            Op::One(op) => op.cpu_fwd(cpu(0)?, layout(0))?,
            Op::Two(op) => op.cpu_fwd(cpu(0)?, layout(0), cpu(1)?, layout(1))?,
            Op::Three(op) => op.cpu_fwd(cpu(0)?, layout(0), cpu(1)?, layout(1), cpu(2)?, layout(2))?,
            Op::Candles => bail!("candle has run these ops itself"),
        };
        Ok(Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), true))
    }
}

struct Step {
    op: Op,
    args: Vec<Tensor>,
    result: Tensor,
}

impl Step {
    /// Gradients of what the step has read, from that of its result.
    fn backward(&self, grad: &Tensor) -> Result<Vec<(&Tensor, Option<Tensor>)>> {
        let result = &self.result;
        let gradients = match (&self.op, self.args.as_slice()) {
            (Op::One(op), [x]) => vec![op.bwd(x, result, grad)?],
            (Op::Two(op), [x, y]) => {
                let (x, y) = op.bwd(x, y, result, grad)?;
                vec![x, y]
            }
            (Op::Three(op), [x, y, z]) => {
                let (x, y, z) = op.bwd(x, y, z, result, grad)?;
                vec![x, y, z]
            }
            (Op::Candles, variables) => {
                let mut store = result.apply_op1(Seed(grad.clone()))?.backward()?;
                variables.iter().map(|variable| store.remove(variable)).collect()
            }
            _ => bail!("a recorded op has as many arguments as it was applied to"),
        };
        Ok(self.args.iter().zip(gradients).collect())
    }
}

/// A number that depends on its argument by a gradient that is given.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed of a gradient"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        scalar()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// What stands for a number that nobody reads.
fn scalar() -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
}

#[derive(Default)]
struct Tape {
    steps: Vec<Step>,
    /// The steps' results.
    made: HashSet<TensorId>,
    /// What steps read and candle's graph has made, or nobody.
    leaves: Vec<Tensor>,
    leaf_ids: HashSet<TensorId>,
}

impl Tape {
    /// Takes note of where the gradient of a step's argument goes.
    fn read(&mut self, arg: &Tensor) {
        if !arg.track_op() || self.made.contains(&arg.id()) || self.leaf_ids.contains(&arg.id()) {
            return;
        }
        // What candle has made of this pass' results is a step of its own. All else is the graph's outside.
        let variables = || arg.sorted_nodes().into_iter().filter(|node| node.is_variable()).cloned();
        if arg.is_variable() || !variables().any(|variable| self.made.contains(&variable.id())) {
            self.leaf_ids.insert(arg.id());
            self.leaves.push(arg.clone());
            return;
        }
        let variables: Vec<Tensor> = variables().collect();
        variables.iter().for_each(|variable| self.read(variable));
        self.made.insert(arg.id());
        self.steps.push(Step { op: Op::Candles, args: variables, result: arg.clone() });
    }

    /// The pass' result as candle is to see it.
    fn into_one_op(mut self, result: Tensor) -> Result<Tensor> {
        self.read(&result);
        if !self.made.contains(&result.id()) {
            return Ok(result);
        }
        let due: Due = Arc::new(Mutex::new(self.leaves.iter().map(|_| None).collect()));
        // candle's ops have three arguments at most: a chain of them, one for each leaf, hands the gradients on.
        let mut chain = Tensor::zeros((), result.dtype(), &Device::Cpu)?;
        for (idx, leaf) in self.leaves.iter().enumerate() {
            chain = chain.apply_op2(leaf, Leaf { due: due.clone(), idx })?;
        }
        let leaf_ids = self.leaves.iter().map(Tensor::id).collect();
        chain.apply_op1(Pass { steps: Mutex::new(Some(self.steps)), result, leaf_ids, due })
    }
}

/// Gradients of the leaves, between the pass' backward and the leaves'.
type Due = Arc<Mutex<Vec<Option<Tensor>>>>;

/// Hands a leaf its gradient.
struct Leaf {
    due: Due,
    idx: usize,
}

impl CustomOp2 for Leaf {
    fn name(&self) -> &'static str {
        "leaf of a recorded pass"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        scalar()
    }

    fn bwd(
        &self,
        chain: &Tensor,
        leaf: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = self.due.lock().unwrap_or_else(PoisonError::into_inner)[self.idx].take();
        let gradient = match gradient {
            // candle wants one of whatever is made of variables.
            None if !leaf.is_variable() => Some(leaf.zeros_like()?),
            gradient => gradient,
        };
        Ok((chain.track_op().then(|| grad.clone()), gradient))
    }
}

/// A recorded pass.
struct Pass {
    steps: Mutex<Option<Vec<Step>>>,
    result: Tensor,
    leaf_ids: Vec<TensorId>,
    due: Due,
}

impl CustomOp1 for Pass {
    fn name(&self) -> &'static str {
        "recorded pass"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.result.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(numbers)), Some((from, to))) => {
                Ok((CpuStorage::F32(numbers[from..to].to_vec()), layout.shape().clone()))
            }
            _ => bail!("the result of a recorded pass is contiguous, in f32 and on the CPU"),
        }
    }

    fn bwd(&self, chain: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut steps) = steps else { bail!("a recorded pass can be differentiated once") };
        let mut gradients = HashMap::from([(self.result.id(), grad.contiguous()?)]);
        while let Some(step) = steps.pop() {
            let Some(grad) = gradients.remove(&step.result.id()) else { continue };
            for (arg, gradient) in step.backward(&grad)? {
                if let Some(mut gradient) = gradient {
                    if let Some(before) = gradients.get(&arg.id()) {
                        gradient = elementwise::add(before, &gradient)?;
                    }
                    gradients.insert(arg.id(), gradient);
                }
            }
        }
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.iter_mut().zip(&self.leaf_ids).for_each(|(due, id)| *due = gradients.remove(id));
        Ok(Some(chain.zeros_like()?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Var};

    use super::*;
    use crate::kernels::testing::{flat, random};
    use crate::kernels::{Gelu, WeightLayout, add, gelu, linear, multiply};

    /// A pass of our ops and candle's, which reads its argument, and one weight, more than once.
    fn pass(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let weight = (weight + 1.0)?; // candle's, outside
        let y = linear(x, &weight, WeightLayout::OutIn, Some(bias))?;
        let y = add(&gelu(&y, Gelu::Tanh)?, x)?;
        let halves = Tensor::cat(&[y.narrow(D::Minus1, 2, 2)?, (y.narrow(D::Minus1, 0, 2)? * 3.0)?], 1)?; // candle's, inside
        let z = linear(&halves, &weight, WeightLayout::InOut, None)?;
        multiply(&add(&z, &halves)?, &y)
    }

    fn variables() -> [Var; 3] {
        [random((3, 4), 1), random((4, 4), 2), random(4, 3)].map(|tensor| Var::from_tensor(&tensor).unwrap())
    }

    #[test]
    fn a_recorded_pass_has_the_same_bits_and_gradients() {
        let [x, weight, bias] = variables();
        let by_candle = pass(&x, &weight, &bias).unwrap();
        let recorded = recorded(|| pass(&x, &weight, &bias)).unwrap();
        assert_eq!(flat(&recorded), flat(&by_candle));
        let factors = random((3, 4), 5);
        let backward = |y: &Tensor| (y * &factors).unwrap().sum_all().unwrap().backward().unwrap();
        let (by_candle, recorded) = (backward(&by_candle), backward(&recorded));
        for variable in [&x, &weight, &bias] {
            let (expected, found) = (flat(by_candle.get(variable).unwrap()), flat(recorded.get(variable).unwrap()));
            for (expected, found) in expected.iter().zip(&found) {
                assert!((expected - found).abs() <= 1e-5 * expected.abs().max(1.0), "{expected} {found}");
            }
        }
    }

    #[test]
    fn what_needs_no_gradient_gets_none() {
        let [x, weight, bias] = variables();
        let loss = recorded(|| pass(&x.as_detached_tensor(), &weight, &bias.as_detached_tensor())).unwrap();
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&weight).is_some() && gradients.get(&x).is_none() && gradients.get(&bias).is_none());
        let detached = [&x, &weight, &bias].map(Var::as_detached_tensor);
        assert!(!recorded(|| pass(&detached[0], &detached[1], &detached[2])).unwrap().track_op());
    }

    #[test]
    fn passes_one_after_the_other_and_a_pass_in_a_pass_hand_their_gradients_on() {
        let [x, weight, bias] = variables();
        let once = |x: &Tensor| pass(x, &weight, &bias);
        let by_candle = once(&once(&once(&x).unwrap()).unwrap()).unwrap();
        let recorded_pass = recorded(|| once(&recorded(|| once(&x))?)).unwrap();
        let recorded_pass = recorded(|| once(&recorded_pass)).unwrap();
        let [expected, found] = [by_candle, recorded_pass].map(|y| y.sum_all().unwrap().backward().unwrap());
        for variable in [&x, &weight, &bias] {
            let (expected, found) = (flat(expected.get(variable).unwrap()), flat(found.get(variable).unwrap()));
            for (expected, found) in expected.iter().zip(&found) {
                assert!((expected - found).abs() <= 1e-4 * expected.abs().max(1.0), "{expected} {found}");
            }
        }
    }

    #[test]
    fn a_pass_is_differentiated_once() {
        let [x, weight, bias] = variables();
        let loss = recorded(|| pass(&x, &weight, &bias)).unwrap().sum_all().unwrap();
        loss.backward().unwrap();
        assert!(loss.backward().unwrap_err().to_string().contains("differentiated once"));
    }

    #[test]
    fn a_pass_that_fails_leaves_no_record_behind() {
        let [x, weight, bias] = variables();
        recorded(|| pass(&x, &weight, &bias.narrow(0, 0, 3)?)).unwrap_err();
        assert!(TAPE.with_borrow(Option::is_none));
    }
}
