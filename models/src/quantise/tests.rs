//! Tests of quantisation: the graph it writes, and what it refuses.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;

use super::*;
use crate::onnx::{GraphProto, NodeProto, TensorProto, data_type};

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        name: Some(output.to_owned()),
        op_type: Some(op.to_owned()),
        ..NodeProto::default()
    }
}

fn constant(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        dims: dims.to_vec(),
        data_type: Some(data_type::FLOAT),
        name: Some(name.to_owned()),
        raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

/// A stem, a pool and one residual block.
fn residual() -> ModelProto {
    let graph = GraphProto {
        node: vec![
            node("Conv", &["x", "w1", "b1"], "c1"),
            node("Relu", &["c1"], "r1"),
            node("MaxPool", &["r1"], "p1"),
            node("Conv", &["p1", "w2", "b2"], "c2"),
            node("Add", &["c2", "p1"], "s"),
            node("Relu", &["s"], "r2"),
            node("GlobalAveragePool", &["r2"], "g"),
        ],
        initializer: vec![
            constant("w1", &[2, 1, 1, 1], &[1.0, -0.5]),
            constant("b1", &[2], &[0.25, 1e9]),
            constant("w2", &[2, 2, 1, 1], &[1.0, 2.0, 0.0, 0.0]),
            constant("b2", &[2], &[0.0, 0.0]),
        ],
        ..GraphProto::default()
    };
    ModelProto { graph: Some(graph), ..ModelProto::default() }
}

#[test]
fn convolutions_sums_and_pools_are_planned() {
    let model = residual();
    let graph = model.graph.as_ref().unwrap();
    let plan = Plan::new(graph, Spared::default());
    assert_eq!(plan.activations, ["x", "r1", "p1", "c2", "r2"]);
    assert_eq!(plan.convolutions.len(), 2);
    assert_eq!(plan.same_levels["p1"], "r1");
    let spared = Plan::new(graph, Spared { first: true, last: true });
    assert_eq!(spared.activations, ["p1", "c2"]);
    assert_eq!(spared.convolutions.len(), 1);
}

#[test]
fn the_graph_is_in_the_form_that_onnx_runtime_fuses() {
    let model = residual();
    let plan = Plan::new(model.graph.as_ref().unwrap(), Spared::default());
    let levels = Levels { scale: 0.5, zero: 0 };
    let all: HashMap<_, _> = plan.activations.iter().map(|name| (name.clone(), levels)).collect();
    let graph = quantised(&model, &plan, &all).unwrap().graph.unwrap();
    let conv = graph.node.iter().find(|node| node.name() == "c1").unwrap();
    assert_eq!(conv.input, ["x/dequantised", "c1/weight/dequantised", "c1/bias/dequantised"]);
    let sum = graph.node.iter().find(|node| node.name() == "s").unwrap();
    assert_eq!(sum.input, ["c2/dequantised", "p1/dequantised"]);
    let relu = graph.node.iter().find(|node| node.name() == "r1").unwrap();
    assert_eq!(relu.input, ["c1"], "between a convolution and its ReLU nothing stands");
    let tensor = |name: &str| graph.initializer.iter().find(|tensor| tensor.name() == name);
    assert!(tensor("w1").is_none() && tensor("b1").is_none(), "the float weights are gone");
    let weights = tensor("c1/weight/quantised").unwrap();
    assert_eq!(weights.data_type, Some(data_type::INT8));
    assert_eq!(weights.raw_data.as_deref().unwrap()[0], 127);
    // A bias that 32 bits could not hold widens its channel's scale instead.
    let scales = tensor("c1/bias/scale").unwrap().floats().unwrap();
    let codes = tensor("c1/bias/quantised").unwrap().raw_data.clone().unwrap();
    let codes: Vec<i32> = codes.as_chunks::<4>().0.iter().map(|&four| i32::from_le_bytes(four)).collect();
    for (code, (scale, bias)) in codes.iter().zip(scales.iter().zip([0.25f64, 1e9])) {
        assert!((f64::from(*code) * f64::from(*scale) / bias - 1.0).abs() < 0.02, "{code} {scale}");
    }
    // An all-zero channel stays zero.
    let zeros = tensor("c2/weight/quantised").unwrap().raw_data.clone().unwrap();
    assert_eq!(zeros[2..], [0, 0]);
    // Calibration that missed a tensor is an error, not a wrong graph.
    assert!(quantised(&model, &plan, &HashMap::new()).is_err());
}

#[test]
fn pictures_to_calibrate_and_to_compare_are_apart() {
    let pictures: Vec<PathBuf> = (0..10_000).map(|i| PathBuf::from(format!("{i:05}.png"))).collect();
    let (calibration, held_out) = split(&pictures);
    assert_eq!((calibration.len(), held_out.len()), (500, 5000));
    assert!(held_out.iter().all(|path| !calibration.contains(path)));
    let name = |i: usize| held_out[i].to_str().unwrap();
    assert!(name(0) < "00010.png" && name(4999) > "09990.png");
}
