//! The update on any GPU that cubecl has a runtime for, within Burn's fusion of operations.

use std::marker::PhantomData;

use burn::tensor::{DType, Shape, Tensor, TensorPrimitive};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, IntElement};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionHandle};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};
use tally_numerics::update::Update;

use super::kernel;
use super::{UpdateBackend, Updated};

/// The backend below the fusion.
type Plain<R, I, BT> = CubeBackend<R, f32, I, BT>;

/// The update in the queue of operations.
#[derive(Debug)]
struct Queued<P> {
    update: Update,
    moments: usize,
    io: CustomOpIr,
    plain: PhantomData<P>,
}

impl<R: CubeRuntime, I: IntElement, BT: BoolElement>
    Operation<<Plain<R, I, BT> as FusionBackend>::FusionRuntime> for Queued<Plain<R, I, BT>>
{
    fn execute(
        &self,
        handles: &mut HandleContainer<FusionHandle<<Plain<R, I, BT> as FusionBackend>::FusionRuntime>>,
    ) {
        let CustomOpIr { inputs, outputs, .. } = &self.io;
        let tensors = inputs.iter();
        let mut tensors =
            tensors.map(|input| into_contiguous(handles.get_float_tensor::<Plain<R, I, BT>>(input)));
        let (Some(gradient), Some(parameters)) = (tensors.next(), tensors.next()) else {
            unreachable!("an operation has as many tensors as it was registered with")
        };
        let moments: Vec<_> = tensors.collect();
        let (made, parts) = kernel::update(&self.update, gradient, parameters, moments);
        for (output, made) in outputs.iter().zip(made) {
            handles.register_float_tensor::<Plain<R, I, BT>>(&output.id, made);
        }
        handles.register_int_tensor::<Plain<R, I, BT>>(&outputs[self.moments + 1].id, parts);
    }
}

impl<R: CubeRuntime, I: IntElement, BT: BoolElement> UpdateBackend for Fusion<Plain<R, I, BT>> {
    fn update(
        update: &Update,
        gradient: Tensor<Self, 1>,
        parameters: Tensor<Self, 1>,
        moments: Vec<Tensor<Self, 1>>,
    ) -> Updated<Self> {
        let count = moments.len();
        let inputs: Vec<_> = [gradient, parameters]
            .into_iter()
            .chain(moments)
            .map(|tensor| tensor.into_primitive().tensor())
            .collect();
        let streams = OperationStreams::with_inputs(&inputs);
        let client = inputs[1].client.clone();
        let elements = inputs[1].shape.num_elements();
        let output = |length: usize, dtype: DType| {
            TensorIr::uninit(client.create_empty_handle(), Shape::new([length]), dtype)
        };
        let state = (0..=count).map(|_| output(elements, DType::F32));
        let outputs: Vec<TensorIr> =
            state.chain([output(kernel::parts(update, elements), DType::I32)]).collect();
        let inputs: Vec<TensorIr> = inputs.into_iter().map(|input| input.into_ir()).collect();
        let io = CustomOpIr::new("tally_update", &inputs, &outputs);
        let queued = Queued::<Plain<R, I, BT>> {
            update: update.clone(),
            moments: count,
            io: io.clone(),
            plain: PhantomData,
        };
        let mut made = client.register(streams, OperationIr::Custom(io), queued).into_iter();
        let mut next = || match made.next() {
            Some(tensor) => tensor,
            None => unreachable!("an operation has as many tensors as it was registered with"),
        };
        let mut float = || Tensor::from_primitive(TensorPrimitive::Float(next()));
        let parameters = float();
        let moments = (0..count).map(|_| float()).collect();
        Updated { parameters, moments, parts: Tensor::from_primitive(next()) }
    }
}
