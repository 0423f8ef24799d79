//! A trained ResNet as an ONNX graph: from bytes of pixels to a normalised embedding.
//!
//! Input `image`: uint8 [batch, H, W, 3], RGB. Output `embedding`: float32 [batch, D], each row of
//! length 1. Cast, mean, standard deviation and layout are inside the graph, so that nobody can
//! apply them twice or forget them. Batch norms are folded into their convolutions in f64.

use latentd_model::Preprocess;

use super::graph::{Axis, ElementType, GraphBuilder, Value, Window};
use crate::nn::config::{BlockSpec, EncoderConfig, Stem};
use crate::nn::weights::{Weights, WeightsError};
use crate::whiten::Whitening;

/// Name of the graph's input.
pub const INPUT: &str = "image";
/// Name of the graph's output.
pub const OUTPUT: &str = "embedding";

/// Batch norm's epsilon, as PyTorch's default and the trainer's layers.
const NORM_EPSILON: f64 = 1e-5;
/// A representation shorter than this is treated as all zeros.
const LENGTH_EPSILON: f32 = 1e-12;

/// Why an encoder can't be written as a graph.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The configuration itself is wrong.
    #[error("the encoder's configuration is wrong: {0}")]
    Config(String),
    /// A weight is missing or has another shape.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A weight is NaN or infinite.
    #[error(
        "`{name}` holds {count} values that are NaN or infinite: the run has diverged, export an \
         earlier checkpoint"
    )]
    NonFinite {
        /// Which array.
        name: String,
        /// How many of its values.
        count: usize,
    },
    /// The preprocessing gives pictures of another size than the encoder takes.
    #[error("the preprocessing gives {height}x{width} pictures and the encoder takes {size}x{size}")]
    Size {
        /// Height that the preprocessing gives.
        height: u32,
        /// Width that the preprocessing gives.
        width: u32,
        /// Edge that the encoder takes.
        size: usize,
    },
}

/// The encoder as the bytes of a `.onnx` file (IR version 8, operator set 17).
///
/// `preprocess` is only noted in the file's metadata; it must give pictures of the encoder's size.
pub fn to_onnx(
    config: &EncoderConfig,
    weights: &Weights,
    preprocess: &Preprocess,
) -> Result<Vec<u8>, GraphError> {
    config.validate().map_err(GraphError::Config)?;
    let size = config.image_size;
    if (preprocess.height as usize, preprocess.width as usize) != (size, size) {
        let (height, width) = (preprocess.height, preprocess.width);
        return Err(GraphError::Size { height, width, size });
    }
    let mut net = Network { g: GraphBuilder::new(config.arch.as_str()), weights };

    let batch = Axis::Dynamic("batch");
    let shape = [batch, Axis::Fixed(size), Axis::Fixed(size), Axis::Fixed(3)];
    let image = net.g.input(INPUT, ElementType::U8, &shape);
    let mut x = net.stem(config, &image)?;
    for block in config.blocks() {
        x = net.block(&block, &x)?;
    }
    let pooled = net.g.global_average_pool("pool", &x);
    let representation = net.g.flatten("representation", &pooled);
    let embedding = match Whitening::of(weights, config.dim()) {
        Some(whitening) => net.whitened(&representation, &whitening),
        None => net.g.l2_normalise(OUTPUT, &representation, LENGTH_EPSILON),
    };
    net.g.output(&embedding, ElementType::F32, &[batch, Axis::Fixed(config.dim())]);
    Ok(net.g.finish(&metadata(config, preprocess)))
}

/// What a reader of the bare file should know: there is no manifest beside it once it is copied.
fn metadata(config: &EncoderConfig, preprocess: &Preprocess) -> Vec<(String, String)> {
    let producer = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
    let preprocess = serde_json::to_string(preprocess).unwrap_or_default();
    let encoder = serde_json::to_string(config).unwrap_or_default();
    [("producer", producer), ("preprocess", &preprocess), ("encoder", &encoder)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// A convolution and the batch norm behind it, as one convolution.
struct Folded {
    /// [Cout, Cin, k, k] as ONNX wants it; the trainer's are [k, k, Cin, Cout].
    weight: Vec<f32>,
    dims: [usize; 4],
    bias: Vec<f32>,
}

struct Network<'a> {
    g: GraphBuilder,
    weights: &'a Weights,
}

impl Network<'_> {
    /// Pixels to the first stage's input.
    ///
    /// `(x/255 − mean) / std` is `(x − 255·mean) · 1/(255·std)`. The factor is folded into the
    /// convolution; the subtraction is not, because the convolution pads with zeros *after* it.
    fn stem(&mut self, config: &EncoderConfig, image: &Value) -> Result<Value, GraphError> {
        let planes = self.g.transpose("image/planes", image, &[0, 3, 1, 2]);
        let planes = self.g.cast_f32("image/float", &planes);
        let mean = config.mean.map(|m| (f64::from(m) * 255.0) as f32);
        let mean = self.g.constant("image/mean", &[1, 3, 1, 1], &mean);
        let centred = self.g.sub("image/centred", &planes, &mean);

        let (kernel, stride) = config.stem_convolution();
        let scale = config.std.map(|s| 1.0 / (255.0 * f64::from(s)));
        let shape = [kernel, kernel, 3, config.stem_channels()];
        let folded = self.fold("stem.conv", "stem.norm", shape, &scale)?;
        let x = self.conv("stem.conv", &centred, &folded, stride);
        let x = self.g.relu("stem.relu", &x);
        Ok(match config.stem {
            Stem::Cifar => x,
            Stem::Imagenet => self.g.max_pool("stem.pool", &x, Window { kernel: 3, stride: 2, padding: 1 }),
        })
    }

    /// The whitening, between two normalisations.
    fn whitened(&mut self, representation: &Value, whitening: &Whitening) -> Value {
        let dim = whitening.mean.len();
        let unit = self.g.l2_normalise("whiten.input", representation, LENGTH_EPSILON);
        let mean = self.g.constant("whiten.mean", &[dim], &whitening.mean);
        let matrix = self.g.constant("whiten.matrix", &[dim, dim], &whitening.matrix);
        let centred = self.g.sub("whiten.centred", &unit, &mean);
        let white = self.g.matmul("whiten.output", &centred, &matrix);
        self.g.l2_normalise(OUTPUT, &white, LENGTH_EPSILON)
    }

    /// One residual block: its convolutions, the shortcut around them, the sum through a ReLU.
    fn block(&mut self, block: &BlockSpec, input: &Value) -> Result<Value, GraphError> {
        let name = &block.name;
        let convolutions = block.convolutions();
        let last = convolutions.len();
        let mut x = input.clone();
        for (i, kernel, stride, cin, cout) in convolutions {
            let (conv, norm) = (format!("{name}.conv{i}"), format!("{name}.norm{i}"));
            let folded = self.fold(&conv, &norm, [kernel, kernel, cin, cout], &[])?;
            x = self.conv(&conv, &x, &folded, stride);
            if i != last {
                x = self.g.relu(&format!("{name}.relu{i}"), &x);
            }
        }
        let shortcut = if block.has_projection() {
            let (conv, norm) = (format!("{name}.shortcut.conv"), format!("{name}.shortcut.norm"));
            let folded = self.fold(&conv, &norm, [1, 1, block.cin, block.cout], &[])?;
            self.conv(&conv, input, &folded, block.stride)
        } else {
            input.clone()
        };
        let sum = self.g.add(&format!("{name}.sum"), &x, &shortcut);
        Ok(self.g.relu(&format!("{name}.relu"), &sum))
    }

    /// A convolution that pads half its kernel on every side.
    fn conv(&mut self, name: &str, x: &Value, folded: &Folded, stride: usize) -> Value {
        let weight = self.g.constant(&format!("{name}.weight"), &folded.dims, &folded.weight);
        let bias = self.g.constant(&format!("{name}.bias"), &[folded.bias.len()], &folded.bias);
        let kernel = folded.dims[2];
        self.g.conv(name, x, &weight, &bias, Window { kernel, stride, padding: kernel / 2 })
    }

    /// Folds a norm, and a factor per input channel (none when empty), into the convolution.
    fn fold(
        &self,
        conv: &str,
        norm: &str,
        shape: [usize; 4],
        input_scale: &[f64],
    ) -> Result<Folded, GraphError> {
        let [kh, kw, cin, cout] = shape;
        let hwio = self.array(&format!("{conv}.weight"), &shape)?;
        let part = |part: &str| self.array(&format!("{norm}.{part}"), &[cout]);
        let (gamma, beta) = (part("weight")?, part("bias")?);
        let (mean, var) = (part("running_mean")?, part("running_var")?);
        let scale: Vec<f64> = gamma
            .iter()
            .zip(var)
            .map(|(&gamma, &var)| f64::from(gamma) / (f64::from(var) + NORM_EPSILON).sqrt())
            .collect();

        let mut weight = Vec::with_capacity(hwio.len());
        for (o, scale) in scale.iter().enumerate() {
            for i in 0..cin {
                let scale = scale * input_scale.get(i).copied().unwrap_or(1.0);
                for tap in 0..kh * kw {
                    weight.push((f64::from(hwio[(tap * cin + i) * cout + o]) * scale) as f32);
                }
            }
        }
        let bias = (0..cout).map(|o| (f64::from(beta[o]) - f64::from(mean[o]) * scale[o]) as f32).collect();
        Ok(Folded { weight, dims: [cout, cin, kh, kw], bias })
    }

    /// The array of that name, checked for shape and for values that are no numbers.
    fn array(&self, name: &str, shape: &[usize]) -> Result<&[f32], GraphError> {
        let data = &self.weights.get(name, shape)?.data;
        let count = data.iter().filter(|x| !x.is_finite()).count();
        if count > 0 {
            return Err(GraphError::NonFinite { name: name.to_owned(), count });
        }
        Ok(data)
    }
}
