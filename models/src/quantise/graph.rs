//! The graph: which of its tensors become eight bits, and the graph with QuantizeLinear and DequantizeLinear.
//!
//! The form is the one that ONNX Runtime turns into integer kernels: `uint8` activations with one scale a tensor,
//! `int8` weights with one scale an output channel around zero, `int32` biases at the product of both scales.
//! A ReLU in front of a QuantizeLinear whose zero is code 0 is dropped by it.

use std::collections::{HashMap, HashSet};

use super::range::Levels;
use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_type, data_type,
};

/// What of a graph stays float although it could be quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spared {
    /// The first convolution, which sees the pixels.
    pub first: bool,
    /// The last quantised output, which the embedding is averaged from.
    pub last: bool,
}

impl std::fmt::Display for Spared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.first, self.last) {
            (false, false) => "all int8",
            (true, false) => "first convolution float",
            (false, true) => "last output float",
            (true, true) => "first convolution and last output float",
        })
    }
}

/// Which nodes and tensors of a graph are quantised.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Places of the convolutions among the nodes.
    pub convolutions: HashSet<usize>,
    /// The activations, in order.
    pub activations: Vec<String>,
    /// Activations that have the levels of another, which they are picked from: a max-pool's output.
    pub same_levels: HashMap<String, String>,
}

impl Plan {
    /// The plan of a graph: all convolutions whose weights are constant, the sums and max-pools between them.
    #[must_use]
    pub fn new(graph: &GraphProto, spared: Spared) -> Self {
        let constants: HashSet<&str> =
            graph.initializer.iter().filter(|t| t.floats().is_some()).map(TensorProto::name).collect();
        let mut plan =
            Self { convolutions: HashSet::new(), activations: Vec::new(), same_levels: HashMap::new() };
        let mut skip_first = spared.first;
        let mut last_output = None;
        for (place, node) in graph.node.iter().enumerate() {
            let (Some(input), Some(output)) = (node.input.first(), node.output.first()) else { continue };
            match node.op_type() {
                "Conv" if node.input.iter().skip(1).all(|name| constants.contains(name.as_str())) => {
                    if std::mem::take(&mut skip_first) {
                        continue;
                    }
                    plan.convolutions.insert(place);
                    plan.take(input);
                    last_output = Some(plan.take(rectified(graph, output)));
                }
                "Add" if node.input.iter().all(|name| plan.has(name)) => {
                    last_output = Some(plan.take(rectified(graph, output)));
                }
                "MaxPool" if node.output.len() == 1 && plan.has(input) => {
                    plan.same_levels.insert(output.clone(), input.clone());
                    last_output = Some(plan.take(output));
                }
                _ => {}
            }
        }
        if let (true, Some(last)) = (spared.last, last_output) {
            plan.activations.remove(last);
        }
        plan
    }

    fn has(&self, name: &str) -> bool {
        self.activations.iter().any(|taken| taken == name)
    }

    /// Takes a tensor in, once, and gives its place.
    fn take(&mut self, name: &str) -> usize {
        let there = self.activations.iter().position(|taken| taken == name);
        there.unwrap_or_else(|| {
            self.activations.push(name.to_owned());
            self.activations.len() - 1
        })
    }
}

/// The output of the ReLU behind a tensor that nothing else reads, else the tensor itself.
fn rectified<'a>(graph: &'a GraphProto, name: &'a str) -> &'a str {
    let mut readers = graph.node.iter().filter(|node| node.input.iter().any(|input| input == name));
    match (readers.next(), readers.next()) {
        (Some(only), None) if only.op_type() == "Relu" => only.output.first().map_or(name, String::as_str),
        _ => name,
    }
}

/// The model with the planned parts quantised; `levels` has every activation of the plan.
///
/// # Errors
/// Names a tensor whose levels or weights are missing.
pub fn quantised(
    model: &ModelProto,
    plan: &Plan,
    levels: &HashMap<String, Levels>,
) -> Result<ModelProto, String> {
    let mut model = model.clone();
    let graph = model.graph.as_mut().ok_or("the model has no graph")?;
    let mut writer = Writer { constants: std::mem::take(&mut graph.initializer), nodes: Vec::new() };
    for (place, mut node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        let input = node.input.first().and_then(|name| levels_of(plan, levels, name));
        if plan.convolutions.contains(&place) {
            let input = input.ok_or_else(|| format!("{} was not calibrated", node.name()))?;
            writer.weights(&mut node, input)?;
        }
        for name in &mut node.input {
            if levels_of(plan, levels, name).is_some() {
                *name = dequantised(name);
            }
        }
        let outputs = node.output.clone();
        writer.nodes.push(node);
        for name in outputs {
            if let Some(levels) = levels_of(plan, levels, &name) {
                writer.pair(&name, levels);
            }
        }
    }
    let read: HashSet<&String> = writer.nodes.iter().flat_map(|node| &node.input).collect();
    writer.constants.retain(|tensor| tensor.name.as_ref().is_some_and(|name| read.contains(name)));
    graph.initializer = writer.constants;
    graph.node = writer.nodes;
    graph.value_info.clear();
    Ok(model)
}

fn levels_of(plan: &Plan, levels: &HashMap<String, Levels>, name: &str) -> Option<Levels> {
    if !plan.has(name) {
        return None;
    }
    let mut source = name;
    while let Some(other) = plan.same_levels.get(source) {
        source = other;
    }
    levels.get(source).copied()
}

fn dequantised(name: &str) -> String {
    format!("{name}/dequantised")
}

struct Writer {
    constants: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
}

impl Writer {
    /// QuantizeLinear and DequantizeLinear behind an activation.
    fn pair(&mut self, name: &str, levels: Levels) {
        let (scale, zero) = (format!("{name}/scale"), format!("{name}/zero"));
        self.constant(&scale, &[], data_type::FLOAT, levels.scale.to_le_bytes().into());
        self.constant(&zero, &[], data_type::UINT8, vec![levels.zero]);
        let code = format!("{name}/quantised");
        self.node("QuantizeLinear", &[name, &scale, &zero], &code, Vec::new());
        self.node("DequantizeLinear", &[&code, &scale, &zero], &dequantised(name), Vec::new());
    }

    /// Weights and bias of a convolution as integers, each behind a DequantizeLinear.
    fn weights(&mut self, node: &mut NodeProto, input: Levels) -> Result<(), String> {
        let missing = |name: &str| format!("{name} holds no float weights");
        let tensor = |name: &str| self.constants.iter().find(|tensor| tensor.name() == name);
        let (name, bias_name) = (node.input.get(1).cloned().unwrap_or_default(), node.input.get(2).cloned());
        let weight = tensor(&name).ok_or_else(|| missing(&name))?;
        let (dims, values) = (weight.dims.clone(), weight.floats().ok_or_else(|| missing(&name))?);
        let channels = dims.first().and_then(|&dim| usize::try_from(dim).ok()).unwrap_or(0);
        if channels == 0 || values.is_empty() {
            return Err(missing(&name));
        }
        let bias = match &bias_name {
            Some(name) => Some(tensor(name).and_then(TensorProto::floats).ok_or_else(|| missing(name))?),
            None => None,
        };
        let each = values.len() / channels;
        let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::with_capacity(channels));
        let mut bias_codes = Vec::with_capacity(4 * channels);
        for (channel, values) in values.chunks_exact(each).enumerate() {
            let bias = bias.as_ref().and_then(|bias| bias.get(channel)).copied().unwrap_or(0.0);
            let scale = weight_scale(values, bias, input.scale);
            scales.extend(scale.to_le_bytes());
            codes.extend(
                values.iter().map(|v| (v / scale).round_ties_even().clamp(-127.0, 127.0) as i8 as u8),
            );
            let code = f64::from(bias) / (f64::from(input.scale) * f64::from(scale));
            bias_codes.extend((code.round_ties_even() as i32).to_le_bytes());
        }
        // Two convolutions may share weights, but not the scale of their inputs.
        let own = format!("{}/weight", node.output.first().map_or("", String::as_str));
        node.input[1] = self.channels(&own, &dims, (data_type::INT8, codes), scales.clone());
        if bias_name.is_some() {
            let input = f64::from(input.scale);
            let product = |four: &[u8; 4]| (input * f64::from(f32::from_le_bytes(*four))) as f32;
            let scales = scales.as_chunks::<4>().0.iter().flat_map(|four| product(four).to_le_bytes());
            let own = format!("{}/bias", node.output.first().map_or("", String::as_str));
            let scales = scales.collect();
            node.input[2] = self.channels(&own, &[channels as i64], (data_type::INT32, bias_codes), scales);
        }
        Ok(())
    }

    /// A constant with one scale for each index of its first axis; gives the name of its float values.
    fn channels(
        &mut self,
        name: &str,
        dims: &[i64],
        (kind, data): (i32, Vec<u8>),
        scales: Vec<u8>,
    ) -> String {
        let count = dims.first().copied().unwrap_or(0);
        let (codes, scale, zero) =
            (format!("{name}/quantised"), format!("{name}/scale"), format!("{name}/zero"));
        self.constant(&codes, dims, kind, data);
        self.constant(&scale, &[count], data_type::FLOAT, scales);
        let width = if kind == data_type::INT8 { 1 } else { 4 };
        self.constant(&zero, &[count], kind, vec![0; width * count as usize]);
        let axis = AttributeProto {
            name: Some("axis".to_owned()),
            i: Some(0),
            r#type: Some(attribute_type::INT),
            ..AttributeProto::default()
        };
        let output = dequantised(name);
        self.node("DequantizeLinear", &[&codes, &scale, &zero], &output, vec![axis]);
        output
    }

    fn constant(&mut self, name: &str, dims: &[i64], kind: i32, data: Vec<u8>) {
        self.constants.push(TensorProto {
            dims: dims.to_vec(),
            data_type: Some(kind),
            name: Some(name.to_owned()),
            raw_data: Some(data),
            ..TensorProto::default()
        });
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            name: Some(output.to_owned()),
            op_type: Some(op.to_owned()),
            attribute,
            ..NodeProto::default()
        });
    }
}

/// The scale of a channel: its largest weight is code 127, unless its bias would leave 32 bits then.
fn weight_scale(weights: &[f32], bias: f32, input_scale: f32) -> f32 {
    let largest = weights.iter().fold(0.0f32, |most, weight| most.max(weight.abs()));
    let for_bias = bias.abs() / (input_scale * (1u32 << 30) as f32);
    (largest / 127.0).max(for_bias).max(1e-12)
}
