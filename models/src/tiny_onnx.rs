//! Small ONNX graphs for tests, written by hand as protobuf.
//!
//! Field numbers are those of onnx.proto of the ONNX project.

/// Element types of onnx.proto's `TensorProto.DataType`.
pub const FLOAT: u64 = 1;
pub const UINT8: u64 = 2;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 2, &mut out);
    varint(value.len() as u64, &mut out);
    out.extend(value);
    out
}

fn int_attribute(name: &str, value: i64) -> Vec<u8> {
    // AttributeProto: name 1, i 3, type 20 (INT = 2).
    [bytes(1, name.as_bytes()), number(3, value as u64), number(20, 2)].concat()
}

fn node(op: &str, input: &str, output: &str, attributes: &[(&str, i64)]) -> Vec<u8> {
    // NodeProto: input 1, output 2, op_type 4, attribute 5.
    let mut out = [bytes(1, input.as_bytes()), bytes(2, output.as_bytes()), bytes(4, op.as_bytes())].concat();
    for (name, value) in attributes {
        out.extend(bytes(5, &int_attribute(name, *value)));
    }
    out
}

/// A dimension: `None` is the symbolic batch.
pub type Dims<'a> = &'a [Option<u64>];

fn value_info(name: &str, element: u64, dims: Dims<'_>) -> Vec<u8> {
    let dimension = |dim: &Option<u64>| match dim {
        Some(size) => bytes(1, &number(1, *size)),
        None => bytes(1, &bytes(2, b"batch")),
    };
    let shape: Vec<u8> = dims.iter().flat_map(dimension).collect();
    let tensor = [number(1, element), bytes(2, &shape)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

/// Name, element type and dimensions of a graph's input or output.
pub type End<'a> = (&'a str, u64, Dims<'a>);

/// A graph of one input and one output.
pub fn model(input: End<'_>, nodes: &[Vec<u8>], output: End<'_>) -> Vec<u8> {
    // GraphProto: node 1, name 2, input 11, output 12.
    let mut graph: Vec<u8> = nodes.iter().flat_map(|node| bytes(1, node)).collect();
    graph.extend(bytes(2, b"tiny"));
    graph.extend(bytes(11, &value_info(input.0, input.1, input.2)));
    graph.extend(bytes(12, &value_info(output.0, output.1, output.2)));
    // ModelProto: ir_version 1, graph 7, opset_import 8 (version 2).
    [number(1, 8), bytes(7, &graph), bytes(8, &number(2, 17))].concat()
}

/// An encoder whose embedding is the picture itself, flattened and normalised.
pub fn encoder(height: u64, width: u64) -> Vec<u8> {
    let nodes = [
        node("Cast", "image", "float", &[("to", FLOAT as i64)]),
        node("Flatten", "float", "flat", &[("axis", 1)]),
        node("LpNormalization", "flat", "embedding", &[("axis", 1), ("p", 2)]),
    ];
    model(
        ("image", UINT8, &[None, Some(height), Some(width), Some(3)]),
        &nodes,
        ("embedding", FLOAT, &[None, Some(height * width * 3)]),
    )
}

/// As [`encoder`], without the normalisation.
pub fn unnormalised(height: u64, width: u64) -> Vec<u8> {
    flattening(
        ("image", UINT8, &[None, Some(height), Some(width), Some(3)]),
        ("embedding", FLOAT, &[None, Some(height * width * 3)]),
    )
}

/// A graph that flattens any input to any output.
pub fn flattening(input: End<'_>, output: End<'_>) -> Vec<u8> {
    let nodes = [
        node("Cast", input.0, "float", &[("to", FLOAT as i64)]),
        node("Flatten", "float", output.0, &[("axis", 1)]),
    ];
    model(input, &nodes, output)
}
