//! A trained ResNet as an ONNX graph: from bytes of pixels to a normalised embedding.
//!
//! Input `image`: uint8 [batch, H, W, 3], RGB. Output `embedding`: float32 [batch, D], each row of
//! length 1. Cast, mean, standard deviation and layout are inside the graph, so that nobody can
//! apply them twice or forget them. Batch norms and weight standardisation are folded into the
//! convolutions in f64; group norms stay operations of the graph.

use latentd_model::Preprocess;

use super::graph::{Axis, ElementType, GraphBuilder, Value, Window};
use crate::nn::config::{BlockSpec, EncoderConfig, Norm, Stem};
use crate::nn::kernels::pool::cell;
use crate::nn::weights::{Weights, WeightsError};
use crate::whiten::Whitening;

/// Name of the graph's input.
pub const INPUT: &str = "image";
/// Name of the graph's output.
pub const OUTPUT: &str = "embedding";

/// Batch norm's epsilon, as PyTorch's default and the trainer's layers.
const NORM_EPSILON: f64 = 1e-5;
/// Weight standardisation's epsilon, as in the trainer's layers.
const STANDARDISATION_EPSILON: f64 = 1e-5;
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
    let mut net = Network { g: GraphBuilder::new(config.arch.as_str()), weights, norm: config.norm };

    let batch = Axis::Dynamic("batch");
    let shape = [batch, Axis::Fixed(size), Axis::Fixed(size), Axis::Fixed(3)];
    let image = net.g.input(INPUT, ElementType::U8, &shape);
    let mut x = net.stem(config, &image)?;
    for block in config.blocks() {
        x = net.block(&block, &x)?;
    }
    let pooled = net.pooled(config, &x);
    let representation = net.g.flatten("representation", &pooled);
    let whitening = Whitening::of(weights, config.dim());
    let embedding = match &whitening {
        Some(whitening) => net.whitened(&representation, whitening),
        None => net.g.l2_normalise(OUTPUT, &representation, LENGTH_EPSILON),
    };
    let dim = whitening.map_or(config.dim(), |w| w.output_dim());
    net.g.output(&embedding, ElementType::F32, &[batch, Axis::Fixed(dim)]);
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

/// Square maps of the graph.
#[derive(Clone)]
struct Map {
    value: Value,
    size: usize,
}

/// A convolution with its norm: their names without endings, and the convolution's shape.
struct Unit<'a> {
    conv: &'a str,
    norm: &'a str,
    /// kernel, kernel, channels in, channels out.
    shape: [usize; 4],
    stride: usize,
    /// A factor per input channel; none when empty.
    input_scale: &'a [f64],
}

struct Network<'a> {
    g: GraphBuilder,
    weights: &'a Weights,
    norm: Norm,
}

impl Network<'_> {
    /// Pixels to the first stage's input.
    ///
    /// `(x/255 − mean) / std` is `(x − 255·mean) · 1/(255·std)`. The factor is folded into the
    /// convolution; the subtraction is not, because the convolution pads with zeros *after* it.
    fn stem(&mut self, config: &EncoderConfig, image: &Value) -> Result<Map, GraphError> {
        let planes = self.g.transpose("image/planes", image, &[0, 3, 1, 2]);
        let planes = self.g.cast_f32("image/float", &planes);
        let mean = config.mean.map(|m| (f64::from(m) * 255.0) as f32);
        let mean = self.g.constant("image/mean", &[1, 3, 1, 1], &mean);
        let centred = self.g.sub("image/centred", &planes, &mean);

        let (kernel, stride) = config.stem_convolution();
        let scale = config.std.map(|s| 1.0 / (255.0 * f64::from(s)));
        let shape = [kernel, kernel, 3, config.stem_channels()];
        let input = Map { value: centred, size: config.image_size };
        let unit = Unit { conv: "stem.conv", norm: "stem.norm", shape, stride, input_scale: &scale };
        let x = self.unit(&unit, &input)?;
        let value = self.g.relu("stem.relu", &x.value);
        Ok(match config.stem {
            Stem::Cifar => Map { value, ..x },
            Stem::Imagenet => {
                let window = Window { kernel: 3, stride: 2, padding: 1 };
                Map { value: self.g.max_pool("stem.pool", &value, window), size: x.size.div_ceil(2) }
            }
        })
    }

    /// The last map's mean, whole or by the cells of a grid: there a product with a constant matrix, as ONNX has no
    /// adaptive pooling.
    fn pooled(&mut self, config: &EncoderConfig, x: &Map) -> Value {
        let grid = config.grid;
        if grid == 1 {
            return self.g.global_average_pool("pool", &x.value);
        }
        let (size, cells) = (x.size, grid * grid);
        let mut share = vec![0f32; size * size * cells];
        for at in 0..cells {
            let (rows, columns) = (cell(at / grid, grid, size), cell(at % grid, grid, size));
            let scale = 1.0 / (rows.len() * columns.len()) as f32;
            for pixel in rows.flat_map(|row| columns.clone().map(move |column| row * size + column)) {
                share[pixel * cells + at] = scale;
            }
        }
        let share = self.g.constant("pool.cells", &[size * size, cells], &share);
        let flat = self.g.reshape("pool.pixels", &x.value, &[0, 0, -1]);
        self.g.matmul("pool", &flat, &share)
    }

    /// The whitening, between two normalisations.
    fn whitened(&mut self, representation: &Value, whitening: &Whitening) -> Value {
        let dim = whitening.mean.len();
        let unit = self.g.l2_normalise("whiten.input", representation, LENGTH_EPSILON);
        let mean = self.g.constant("whiten.mean", &[dim], &whitening.mean);
        let matrix = self.g.constant("whiten.matrix", &[dim, whitening.output_dim()], &whitening.matrix);
        let centred = self.g.sub("whiten.centred", &unit, &mean);
        let white = self.g.matmul("whiten.output", &centred, &matrix);
        self.g.l2_normalise(OUTPUT, &white, LENGTH_EPSILON)
    }

    /// One residual block: its convolutions, the shortcut around them, the sum through a ReLU.
    fn block(&mut self, block: &BlockSpec, input: &Map) -> Result<Map, GraphError> {
        let name = &block.name;
        let convolutions = block.convolutions();
        let last = convolutions.len();
        let mut x = input.clone();
        for (i, kernel, stride, cin, cout) in convolutions {
            let (conv, norm) = (format!("{name}.conv{i}"), format!("{name}.norm{i}"));
            let shape = [kernel, kernel, cin, cout];
            x = self.unit(&Unit { conv: &conv, norm: &norm, shape, stride, input_scale: &[] }, &x)?;
            if i != last {
                x.value = self.g.relu(&format!("{name}.relu{i}"), &x.value);
            }
        }
        let shortcut = if block.has_projection() {
            let (conv, norm) = (format!("{name}.shortcut.conv"), format!("{name}.shortcut.norm"));
            let shape = [1, 1, block.cin, block.cout];
            let unit = Unit { conv: &conv, norm: &norm, shape, stride: block.stride, input_scale: &[] };
            self.unit(&unit, input)?
        } else {
            input.clone()
        };
        let sum = self.g.add(&format!("{name}.sum"), &x.value, &shortcut.value);
        Ok(Map { value: self.g.relu(&format!("{name}.relu"), &sum), ..x })
    }

    /// A convolution that pads half its kernel on every side, and its norm.
    fn unit(&mut self, unit: &Unit, x: &Map) -> Result<Map, GraphError> {
        let [kernel, _, _, channels] = unit.shape;
        let size = (x.size + 2 * (kernel / 2) - kernel) / unit.stride + 1;
        let folded = match self.norm {
            Norm::Batch => self.fold(unit)?,
            Norm::GnWs => self.standardised(unit)?,
        };
        let name = unit.conv;
        let weight = self.g.constant(&format!("{name}.weight"), &folded.dims, &folded.weight);
        let bias = self.g.constant(&format!("{name}.bias"), &[folded.bias.len()], &folded.bias);
        let window = Window { kernel, stride: unit.stride, padding: kernel / 2 };
        let mut value = self.g.conv(name, &x.value, &weight, &bias, window);
        if self.norm == Norm::GnWs {
            let groups = channels / Norm::group(channels);
            let [gamma, beta] = ["weight", "bias"].map(|part| format!("{}.{part}", unit.norm));
            let (g, b) =
                (self.array(&gamma, &[channels])?.to_vec(), self.array(&beta, &[channels])?.to_vec());
            let gamma = self.g.constant(&gamma, &[channels, 1, 1], &g);
            let beta = self.g.constant(&beta, &[channels, 1, 1], &b);
            value = self.g.group_norm(unit.norm, &value, (channels, size, groups), (&gamma, &beta));
        }
        Ok(Map { value, size })
    }

    /// The weights at mean 0 and variance 1 over each output channel's fan-in.
    fn standardised(&self, unit: &Unit) -> Result<Folded, GraphError> {
        let [kh, kw, cin, cout] = unit.shape;
        let hwio = self.array(&format!("{}.weight", unit.conv), &unit.shape)?;
        let fan_in = (kh * kw * cin) as f64;
        let mut weight = Vec::with_capacity(hwio.len());
        for o in 0..cout {
            let column = || hwio[o..].iter().step_by(cout).map(|&w| f64::from(w));
            let mean = column().sum::<f64>() / fan_in;
            let variance = column().map(|w| (w - mean).powi(2)).sum::<f64>() / fan_in;
            let scale = 1.0 / (variance + STANDARDISATION_EPSILON).sqrt();
            for i in 0..cin {
                let scale = scale * unit.input_scale.get(i).copied().unwrap_or(1.0);
                let taps = (0..kh * kw).map(|tap| f64::from(hwio[(tap * cin + i) * cout + o]));
                weight.extend(taps.map(|w| ((w - mean) * scale) as f32));
            }
        }
        Ok(Folded { weight, dims: [cout, cin, kh, kw], bias: vec![0.0; cout] })
    }

    /// Folds a batch norm, and the factor per input channel, into the convolution.
    fn fold(&self, unit: &Unit) -> Result<Folded, GraphError> {
        let Unit { conv, norm, shape, input_scale, .. } = *unit;
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
