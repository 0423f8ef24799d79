//! A builder of ONNX graphs: one method per operator, names handed out so that none clashes.

use std::collections::HashSet;

use latentd_model::onnx::{
    AttributeProto, Dimension, DimensionProto, GraphProto, IR_VERSION, ModelProto, NodeProto, OPSET_VERSION,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, attribute_type, data_type,
};
use prost::Message;

/// A value of the graph being built: a graph input, a constant or a node's output.
#[derive(Clone, Debug)]
pub struct Value(String);

/// The element types that a graph's inputs and outputs may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 8-bit unsigned integer.
    U8,
}

impl ElementType {
    fn onnx(self) -> i32 {
        match self {
            Self::F32 => data_type::FLOAT,
            Self::U8 => data_type::UINT8,
        }
    }
}

/// One axis of a graph's input or output.
#[derive(Clone, Copy, Debug)]
pub enum Axis {
    /// Known at run time only; the name is the same wherever the extent is.
    Dynamic(&'static str),
    /// A fixed extent.
    Fixed(usize),
}

/// What a square window does at the edges: its stride and the symmetric padding, both in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Edge of the window.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Padding on each side (zeros for a convolution, −∞ for a max-pool).
    pub padding: usize,
}

/// Builds one ONNX graph, node by node, in the order of execution.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    graph: GraphProto,
    names: HashSet<String>,
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        let graph = GraphProto { name: Some(name.to_owned()), ..GraphProto::default() };
        Self { graph, names: HashSet::new() }
    }

    /// Declares an input of the graph.
    pub fn input(&mut self, name: &str, element: ElementType, shape: &[Axis]) -> Value {
        let name = self.fresh(name);
        self.graph.input.push(value_info(&name, element, shape));
        Value(name)
    }

    /// Declares `value` an output of the graph; its name is the name its node was given.
    pub fn output(&mut self, value: &Value, element: ElementType, shape: &[Axis]) {
        self.graph.output.push(value_info(&value.0, element, shape));
    }

    /// A constant of 32-bit floats, row-major.
    pub fn constant(&mut self, name: &str, dims: &[usize], data: &[f32]) -> Value {
        debug_assert_eq!(dims.iter().product::<usize>(), data.len());
        let name = self.fresh(name);
        self.graph.initializer.push(TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: Some(data_type::FLOAT),
            name: Some(name.clone()),
            raw_data: Some(data.iter().flat_map(|x| x.to_le_bytes()).collect()),
            ..TensorProto::default()
        });
        Value(name)
    }

    /// Converts the elements of `x` to 32-bit floats.
    pub fn cast_f32(&mut self, name: &str, x: &Value) -> Value {
        self.node("Cast", name, &[x], vec![int("to", i64::from(data_type::FLOAT))])
    }

    /// Reorders the axes: axis `i` of the result is axis `axes[i]` of `x`.
    pub fn transpose(&mut self, name: &str, x: &Value, axes: &[usize]) -> Value {
        self.node("Transpose", name, &[x], vec![ints("perm", axes.iter().map(|&a| a as i64))])
    }

    /// `a + b`, broadcast as numpy does.
    pub fn add(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node("Add", name, &[a, b], Vec::new())
    }

    /// `a − b`, broadcast as numpy does.
    pub fn sub(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node("Sub", name, &[a, b], Vec::new())
    }

    /// `a / b`, broadcast as numpy does.
    pub fn div(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node("Div", name, &[a, b], Vec::new())
    }

    /// `a · b`, broadcast as numpy does.
    pub fn mul(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node("Mul", name, &[a, b], Vec::new())
    }

    /// The same values in another shape: 0 keeps an axis, −1 takes what is left.
    pub fn reshape(&mut self, name: &str, x: &Value, shape: &[i64]) -> Value {
        let to = self.fresh(&format!("{name}/shape"));
        self.graph.initializer.push(TensorProto {
            dims: vec![shape.len() as i64],
            data_type: Some(data_type::INT64),
            name: Some(to.clone()),
            raw_data: Some(shape.iter().flat_map(|x| x.to_le_bytes()).collect()),
            ..TensorProto::default()
        });
        self.node("Reshape", name, &[x, &Value(to)], Vec::new())
    }

    /// Group norm of `x` [B, C, size, size] over `groups` groups of its channels, scaled by `gamma`
    /// and shifted by `beta` [C, 1, 1]: an instance norm of the groups.
    pub fn group_norm(
        &mut self,
        name: &str,
        x: &Value,
        (channels, size, groups): (usize, usize, usize),
        (gamma, beta): (&Value, &Value),
    ) -> Value {
        let grouped = self.reshape(&format!("{name}/groups"), x, &[0, groups as i64, -1]);
        let one = self.constant(&format!("{name}/one"), &[groups], &vec![1.0; groups]);
        let zero = self.constant(&format!("{name}/zero"), &[groups], &vec![0.0; groups]);
        let inputs = [&grouped, &one, &zero];
        // The operator's epsilon is 1e-5 unless told otherwise, as the trainer's.
        let normal = self.node("InstanceNormalization", &format!("{name}/normal"), &inputs, Vec::new());
        let (c, s) = (channels as i64, size as i64);
        let maps = self.reshape(&format!("{name}/maps"), &normal, &[0, c, s, s]);
        let scaled = self.mul(&format!("{name}/scaled"), &maps, gamma);
        self.add(name, &scaled, beta)
    }

    /// `max(a, b)`, broadcast as numpy does.
    pub fn max(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node("Max", name, &[a, b], Vec::new())
    }

    /// The product of matrices `a` [.., B, N] and `b` [N, M].
    pub fn matmul(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node("MatMul", name, &[a, b], Vec::new())
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, name: &str, x: &Value) -> Value {
        self.node("Relu", name, &[x], Vec::new())
    }

    /// A 2-d convolution of `x` [B, Cin, H, W] with `weight` [Cout, Cin, k, k] and `bias` [Cout].
    pub fn conv(&mut self, name: &str, x: &Value, weight: &Value, bias: &Value, window: Window) -> Value {
        self.node("Conv", name, &[x, weight, bias], window_attributes(window))
    }

    /// The maximum of each window of `x` [B, C, H, W].
    pub fn max_pool(&mut self, name: &str, x: &Value, window: Window) -> Value {
        self.node("MaxPool", name, &[x], window_attributes(window))
    }

    /// The mean over the pixels of `x` [B, C, H, W], as [B, C, 1, 1].
    pub fn global_average_pool(&mut self, name: &str, x: &Value) -> Value {
        self.node("GlobalAveragePool", name, &[x], Vec::new())
    }

    /// Keeps the first axis of `x` and merges all others into one.
    pub fn flatten(&mut self, name: &str, x: &Value) -> Value {
        self.node("Flatten", name, &[x], vec![int("axis", 1)])
    }

    /// Divides each row of `x` [B, D] by its Euclidean length; a length below `epsilon` counts as
    /// `epsilon`, so that an all-zero row stays zero instead of turning into NaN.
    pub fn l2_normalise(&mut self, name: &str, x: &Value, epsilon: f32) -> Value {
        let attributes = vec![ints("axes", [1]), int("keepdims", 1)];
        let length = self.node("ReduceL2", &format!("{name}/length"), &[x], attributes);
        let epsilon = self.constant(&format!("{name}/epsilon"), &[], &[epsilon]);
        let length = self.max(&format!("{name}/guard"), &length, &epsilon);
        self.div(name, x, &length)
    }

    /// The finished model, encoded as the bytes of a `.onnx` file.
    pub fn finish(self, metadata: &[(String, String)]) -> Vec<u8> {
        let entry = |(key, value): &(String, String)| StringStringEntryProto {
            key: Some(key.clone()),
            value: Some(value.clone()),
        };
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some(env!("CARGO_PKG_NAME").to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(OPSET_VERSION),
            }],
            metadata_props: metadata.iter().map(entry).collect(),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }

    fn node(
        &mut self,
        op_type: &str,
        name: &str,
        inputs: &[&Value],
        attribute: Vec<AttributeProto>,
    ) -> Value {
        let name = self.fresh(name);
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|v| v.0.clone()).collect(),
            output: vec![name.clone()],
            name: Some(name.clone()),
            op_type: Some(op_type.to_owned()),
            attribute,
            ..NodeProto::default()
        });
        Value(name)
    }

    /// `wanted` if it is free, otherwise with the first free number behind it.
    fn fresh(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut n = 1;
        while !self.names.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        name
    }
}

fn value_info(name: &str, element: ElementType, shape: &[Axis]) -> ValueInfoProto {
    let dim = |axis: &Axis| DimensionProto {
        value: Some(match *axis {
            Axis::Dynamic(name) => Dimension::Param(name.to_owned()),
            Axis::Fixed(n) => Dimension::Value(n as i64),
        }),
    };
    let tensor_type = TensorTypeProto {
        elem_type: Some(element.onnx()),
        shape: Some(TensorShapeProto { dim: shape.iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { tensor_type: Some(tensor_type) }),
        doc_string: None,
    }
}

fn window_attributes(window: Window) -> Vec<AttributeProto> {
    vec![
        ints("kernel_shape", [window.kernel as i64; 2]),
        ints("strides", [window.stride as i64; 2]),
        ints("pads", [window.padding as i64; 4]),
    ]
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        i: Some(i),
        r#type: Some(attribute_type::INT),
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: impl IntoIterator<Item = i64>) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints: values.into_iter().collect(),
        r#type: Some(attribute_type::INTS),
        ..AttributeProto::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_never_clash_and_the_bytes_read_back() {
        let mut g = GraphBuilder::new("test");
        let x = g.input("x", ElementType::F32, &[Axis::Dynamic("batch"), Axis::Fixed(3)]);
        let a = g.relu("x", &x);
        let b = g.relu("x", &a);
        g.output(&b, ElementType::F32, &[Axis::Dynamic("batch"), Axis::Fixed(3)]);
        let bytes = g.finish(&[("preprocess".to_owned(), "{}".to_owned())]);

        let model = ModelProto::decode(bytes.as_slice()).unwrap();
        assert_eq!(model.ir_version, Some(IR_VERSION));
        assert_eq!(model.opset_import[0].version, Some(OPSET_VERSION));
        assert_eq!(model.metadata_props[0].key(), "preprocess");
        let graph = model.graph.unwrap();
        let outputs: Vec<_> = graph.node.iter().map(|n| n.output[0].as_str()).collect();
        assert_eq!(outputs, ["x_2", "x_3"]);
        assert_eq!(graph.node[1].input, ["x_2"]);
    }

    #[test]
    fn zero_valued_attributes_are_written() {
        // `pads = 0` and `to = 0` differ from "absent" in proto2; absent would mean the default.
        let attribute = int("axis", 0);
        let back = AttributeProto::decode(attribute.encode_to_vec().as_slice()).unwrap();
        assert_eq!(back.i, Some(0));
        assert_eq!(back.r#type, Some(attribute_type::INT));
    }
}
