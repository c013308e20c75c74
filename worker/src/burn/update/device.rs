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
        let (inputs, outputs) = self.io.as_fixed::<3, 3>();
        let [gradient, parameters, momentum] = inputs
            .each_ref()
            .map(|input| into_contiguous(handles.get_float_tensor::<Plain<R, I, BT>>(input)));
        let [new_parameters, new_momentum, parts] =
            kernel::update(self.update, gradient, parameters, momentum);
        handles.register_float_tensor::<Plain<R, I, BT>>(&outputs[0].id, new_parameters);
        handles.register_float_tensor::<Plain<R, I, BT>>(&outputs[1].id, new_momentum);
        handles.register_int_tensor::<Plain<R, I, BT>>(&outputs[2].id, parts);
    }
}

impl<R: CubeRuntime, I: IntElement, BT: BoolElement> UpdateBackend for Fusion<Plain<R, I, BT>> {
    fn update(
        update: Update,
        gradient: Tensor<Self, 1>,
        parameters: Tensor<Self, 1>,
        momentum: Tensor<Self, 1>,
    ) -> Updated<Self> {
        let inputs = [gradient, parameters, momentum].map(|tensor| tensor.into_primitive().tensor());
        let streams = OperationStreams::with_inputs(&inputs);
        let client = inputs[1].client.clone();
        let elements = inputs[1].shape.num_elements();
        let output = |length: usize, dtype: DType| {
            TensorIr::uninit(client.create_empty_handle(), Shape::new([length]), dtype)
        };
        let outputs = [
            output(elements, DType::F32),
            output(elements, DType::F32),
            output(kernel::parts(elements), DType::I32),
        ];
        let io = CustomOpIr::new("tally_update", &inputs.map(|input| input.into_ir()), &outputs);
        let queued = Queued::<Plain<R, I, BT>> { update, io: io.clone(), plain: PhantomData };
        let mut made = client.register(streams, OperationIr::Custom(io), queued).into_iter();
        let mut next = || match made.next() {
            Some(tensor) => tensor,
            None => unreachable!("an operation has as many tensors as it was registered with"),
        };
        let mut float = || Tensor::from_primitive(TensorPrimitive::Float(next()));
        let (parameters, momentum) = (float(), float());
        Updated { parameters, momentum, parts: Tensor::from_primitive(next()) }
    }
}
