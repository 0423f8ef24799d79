//! GFLOP/s of the convolution kernels on the layers of a CIFAR ResNet-18, at each precision.
//!
//! `cargo bench -p latentd-trainer --bench convolution`

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use latentd_trainer::nn::kernels::conv::{self, ConvShape};
use latentd_trainer::nn::kernels::geometry::Geometry;
use latentd_trainer::nn::kernels::precision::Precision;

fn time(flops: f64, mut f: impl FnMut()) -> f64 {
    f();
    let mut best = f64::MAX;
    for _ in 0..9 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    flops / best / 1e9
}

fn main() -> candle_core::Result<()> {
    let threads = rayon::current_num_threads();
    for precision in [Precision::Highest, Precision::High, Precision::Medium] {
        println!("{precision:?} (GFLOP/s, {threads} threads)");
        println!("kernel stride   cin  cout  size   forward  d input  d weights");
        for width in [16, 64] {
            for (kernel, stride, cin, cout, size) in layers(width) {
                layer(ConvShape { kernel, stride, cin, cout, precision }, size);
            }
        }
    }
    println!("candle's own convolution (GFLOP/s, {threads} threads)");
    println!("kernel stride   cin  cout  size   forward  both gradients");
    for (kernel, stride, cin, cout, size) in layers(64) {
        let precision = Precision::Highest;
        candle_layer(ConvShape { kernel, stride, cin, cout, precision }, size)?;
    }
    Ok(())
}

/// The same layer by candle, of fewer images because it takes so long.
fn candle_layer(shape: ConvShape, size: usize) -> candle_core::Result<()> {
    const IMAGES: usize = 16;
    let ConvShape { kernel, stride, cin, cout, .. } = shape;
    let values = |dims: [usize; 4]| Tensor::full(0.5f32, &dims, &Device::Cpu);
    let x = Var::from_tensor(&values([IMAGES, cin, size, size])?)?;
    let w = Var::from_tensor(&values([cout, cin, kernel, kernel])?)?;
    let out = shape.output_size(size);
    let flops = 2.0 * (shape.weights() * out * out * IMAGES) as f64;
    let convolve = || x.as_tensor().conv2d(w.as_tensor(), kernel / 2, stride, 1, 1);
    let mut failed = None;
    let forward = time(flops, || failed = convolve().err());
    let z = convolve()?;
    let backward = time(2.0 * flops, || failed = z.backward().err());
    if let Some(error) = failed {
        return Err(error);
    }
    println!("{kernel:6} {stride:6} {cin:5} {cout:5} {size:5} {forward:9.1} {backward:15.1}");
    Ok(())
}

/// (kernel, stride, channels in, channels out, height and width of the input).
fn layers(width: usize) -> Vec<(usize, usize, usize, usize, usize)> {
    let mut layers = vec![(3, 1, 3, width, 32)];
    for stage in 0..4 {
        let c = width << stage;
        if stage > 0 {
            layers.push((3, 2, c / 2, c, 64 >> stage));
            layers.push((1, 2, c / 2, c, 64 >> stage));
        }
        layers.push((3, 1, c, c, 32 >> stage));
    }
    layers
}

fn layer(shape: ConvShape, size: usize) {
    let ConvShape { kernel, stride, cin, cout, .. } = shape;
    let xg = Geometry { images: 128, height: size, width: size, channels: cin, pad: kernel / 2 };
    let zg = shape.output(xg);
    let dzg = zg.with_pad(kernel / 2);
    let x = vec![0.5f32; xg.len()];
    let w = vec![0.01f32; shape.weights()];
    let (mut z, mut dx, mut dw) =
        (vec![0f32; zg.len()], vec![0f32; xg.with_pad(0).len()], vec![0f32; w.len()]);
    let dz = vec![0.5f32; dzg.len()];
    let flops = 2.0 * (shape.weights() * zg.pixels() * xg.images) as f64;
    let f = time(flops, || conv::forward(shape, xg, black_box(&x), &w, zg, &mut z));
    let i =
        time(flops, || conv::backward_input(shape, dzg, black_box(&dz), &w, xg.with_pad(0), &mut dx, false));
    let b = time(flops, || conv::backward_weights(shape, xg, black_box(&x), dzg, &dz, &mut dw));
    println!("{kernel:6} {stride:6} {cin:5} {cout:5} {size:5} {f:9.1} {i:8.1} {b:10.1}");
}
