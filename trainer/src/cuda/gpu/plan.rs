//! How cuDNN does a convolution: an operation, an engine for it, a plan that can be run.
//!
//! cuDNN's graph API, which the older one by algorithms stands behind: its heuristics know the
//! kernels of Hopper, and they answer for a described GPU as well as for one that is there, so that
//! plans are tested without.

use std::rc::Rc;

use cudarc::cudnn::sys;

use super::super::device::{Address, Convolution, CudaError, Pass, Result};
use super::dnn::{Descriptor, Handle, Kind, Name};
use crate::device::Precision;

/// Workspace that a plan may need, in bytes, where another does with less.
const WORKSPACE: usize = 1 << 30;
/// Engine configurations that are asked for at a time.
const CONFIGURATIONS: usize = 64;
/// What pointers are aligned to, in bytes.
const ALIGNMENT: i64 = 16;
/// The tensors' names in a graph.
const IDS: [i64; 3] = [1, 2, 3];

/// What plans are made for.
pub enum Target<'a> {
    /// The GPU of a handle.
    Handle(&'a Handle),
    /// A GPU that is described; its plans cannot be run here.
    #[cfg_attr(not(test), expect(dead_code, reason = "for tests, on machines without a GPU"))]
    Described(&'a Descriptor),
}

/// A way to do one of a convolution's products.
pub struct Plan {
    plan: Descriptor,
    /// What the plan was made of, kept as long as it.
    _configuration: Descriptor,
    _graph: Rc<Vec<Descriptor>>,
    /// Bytes of memory that it needs beside the arrays.
    pub workspace: usize,
    /// cuDNN's number of the engine.
    pub engine: i64,
}

impl Plan {
    /// Runs it on [x, w, y]; those that are read and the one that is written follow from the pass.
    pub fn run(&self, handle: &Handle, data: [Address; 3], workspace: Address) -> Result<()> {
        let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        pack.set_pointers(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &data)?;
        pack.set_i64(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &IDS)?;
        pack.set_pointers(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[workspace])?;
        let pack = pack.finish("arrays of a convolution")?;
        // SAFETY: `Device::convolve`'s caller promised the arrays' sizes.
        unsafe { handle.execute(&self.plan, &pack) }
    }
}

/// A tensor `[images, channels, height, width]` that lies channels last.
fn tensor(id: i64, [n, c, h, w]: [usize; 4], precision: Precision) -> Result<Descriptor> {
    let [n, c, h, w] = [n, c, h, w].map(|v| v as i64);
    let tensor = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    let values = match precision {
        Precision::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        Precision::Tf32 | Precision::F32 => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
    };
    tensor.set_data_type(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, values)?;
    tensor.set_i64(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &[n, c, h, w])?;
    tensor.set_i64(Name::CUDNN_ATTR_TENSOR_STRIDES, &[h * w * c, 1, w * c, c])?;
    tensor.set_i64(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id])?;
    tensor.set_i64(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT])?;
    tensor.finish("a tensor")
}

/// Stride, padding and where sums are made: always f32.
fn convolution(of: &Convolution) -> Result<Descriptor> {
    let (pad, stride) = ((of.kernel / 2) as i64, of.stride as i64);
    let conv = Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
    let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
    conv.set_data_type(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, sys::cudnnDataType_t::CUDNN_DATA_FLOAT)?;
    conv.set_convolution_mode(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, mode)?;
    conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2])?;
    conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1, 1])?;
    conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &[stride, stride])?;
    conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &[pad, pad])?;
    conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &[pad, pad])?;
    conv.finish("a convolution")
}

/// The operation's kind and the names of its attributes: alpha, beta, convolution, x, w, y.
fn operation_names(pass: Pass) -> (Kind, [Name; 6]) {
    match pass {
        Pass::Forward => (
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
            [
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
            ],
        ),
        Pass::Input => (
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
            [
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
            ],
        ),
        Pass::Weight => (
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
            [
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
            ],
        ),
    }
}

/// A graph of one convolution, and what it is made of.
fn graph(target: &Target, of: &Convolution, pass: Pass, precision: Precision) -> Result<Vec<Descriptor>> {
    let (height, width) = (of.output_size(of.height), of.output_size(of.width));
    let x = tensor(IDS[0], [of.images, of.cin, of.height, of.width], precision)?;
    let w = tensor(IDS[1], [of.cout, of.cin, of.kernel, of.kernel], precision)?;
    let y = tensor(IDS[2], [of.images, of.cout, height, width], precision)?;
    let conv = convolution(of)?;
    let (kind, [alpha, beta, conv_name, x_name, w_name, y_name]) = operation_names(pass);
    let operation = Descriptor::new(kind)?;
    operation.set_f32(alpha, 1.0)?;
    operation.set_f32(beta, 0.0)?;
    operation.set_descriptor(conv_name, &conv)?;
    operation.set_descriptor(x_name, &x)?;
    operation.set_descriptor(w_name, &w)?;
    operation.set_descriptor(y_name, &y)?;
    let operation = operation.finish("a convolution's operation")?;
    let graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
    if let Target::Handle(handle) = target {
        graph.set_handle(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle)?;
    }
    graph.set_descriptor(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operation)?;
    let graph = graph.finish("a convolution's graph")?;
    Ok(vec![graph, operation, conv, x, w, y])
}

/// Engine configurations for a graph, most promising first.
fn configurations(
    target: &Target,
    graph: &Descriptor,
    mode: sys::cudnnBackendHeurMode_t,
) -> Result<Vec<Descriptor>> {
    let heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
    heuristics.set_heuristic(Name::CUDNN_ATTR_ENGINEHEUR_MODE, mode)?;
    heuristics.set_descriptor(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)?;
    if let Target::Described(device) = target {
        heuristics.set_descriptor(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device)?;
    }
    let heuristics = heuristics.finish("asking for engines")?;
    let kind = Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
    heuristics.get_descriptors(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, kind, CONFIGURATIONS)
}

/// Whether an engine with these notes computes as the precision asks, the same each time.
fn fits(notes: &[i32], precision: Precision, repeatable: bool) -> bool {
    use sys::cudnnBackendNumericalNote_t as Note;
    let has = |note: Note| notes.contains(&(note as i32));
    let exact = !has(Note::CUDNN_NUMERICAL_NOTE_TENSOR_CORE)
        && !has(Note::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)
        && !has(Note::CUDNN_NUMERICAL_NOTE_FFT)
        && !has(Note::CUDNN_NUMERICAL_NOTE_WINOGRAD);
    (exact || precision != Precision::F32)
        && !(repeatable && has(Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC))
}

/// The plan of a configuration, if cuDNN can make it.
fn finish(
    target: &Target,
    graph: &Rc<Vec<Descriptor>>,
    configuration: Descriptor,
    engine: i64,
) -> Result<Plan> {
    let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
    match target {
        Target::Handle(handle) => plan.set_handle(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle)?,
        Target::Described(device) => {
            plan.set_descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device)?;
        }
    }
    plan.set_descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &configuration)?;
    let plan = plan.finish("planning a convolution")?;
    let workspace = plan.get_i64(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
    let workspace = usize::try_from(workspace).unwrap_or(0);
    Ok(Plan { plan, _configuration: configuration, _graph: graph.clone(), workspace, engine })
}

/// Up to `count` plans for one of a convolution's products, most promising first; none that needs
/// more than a gibibyte of workspace unless all do.
///
/// Engines that give other bits each time are left out where there are others.
pub fn plans(
    target: &Target,
    of: &Convolution,
    pass: Pass,
    precision: Precision,
    count: usize,
) -> Result<Vec<Plan>> {
    use sys::cudnnBackendHeurMode_t as Mode;
    let parts = Rc::new(graph(target, of, pass, precision)?);
    let mut large: Option<Plan> = None;
    let mut plans = Vec::new();
    for repeatable in [true, false] {
        for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
            for configuration in configurations(target, &parts[0], mode)? {
                let name = Name::CUDNN_ATTR_ENGINECFG_ENGINE;
                let engines =
                    configuration.get_descriptors(name, Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1)?;
                let Some(engine) = engines.first() else { continue };
                if plans.len() == count || !fits(&engine.get_numerical_notes()?, precision, repeatable) {
                    continue;
                }
                let number = engine.get_i64(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)?;
                // Heuristics may propose what this GPU or shape does not take.
                let Ok(plan) = finish(target, &parts, configuration, number) else { continue };
                if plan.workspace <= WORKSPACE {
                    plans.push(plan);
                } else if large.as_ref().is_none_or(|l| plan.workspace < l.workspace) {
                    large = Some(plan);
                }
            }
        }
        if plans.is_empty() {
            plans.extend(large.take());
        }
        if !plans.is_empty() {
            break;
        }
    }
    if plans.is_empty() {
        return Err(CudaError(format!("cuDNN has no way to do {pass:?} of {of:?} in {precision}")));
    }
    Ok(plans)
}
