//! Convolution against the formula in f64, on every instruction set of the processor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::weights::{PART_PIXELS, PARTIAL_VALUES, backward_weights_on};
use super::*;

/// Values in [-1, 1) inside, zero in the border.
fn random_map(g: Geometry, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut data = vec![0f32; g.len()];
    for n in 0..g.images {
        for y in 0..g.height {
            for x in 0..g.width {
                let at = g.origin() + n * g.image_stride() + y * g.row_stride() + x * g.channels;
                data[at..at + g.channels].fill_with(|| rng.random_range(-1.0..1.0));
            }
        }
    }
    data
}

fn at(g: Geometry, n: usize, y: isize, x: isize, c: usize) -> usize {
    let start = (g.origin() + n * g.image_stride() + c) as isize;
    (start + y * g.row_stride() as isize + x * g.channels as isize) as usize
}

/// Calls `f` with every (x index, w index, z index) that multiply in a convolution.
fn every_product(s: ConvShape, xg: Geometry, zg: Geometry, mut f: impl FnMut(usize, usize, usize)) {
    for n in 0..zg.images {
        for (oy, ox) in (0..zg.height).flat_map(|y| (0..zg.width).map(move |x| (y, x))) {
            for (ky, kx) in (0..s.kernel).flat_map(|y| (0..s.kernel).map(move |x| (y, x))) {
                let iy = (oy * s.stride + ky) as isize - s.pad() as isize;
                let ix = (ox * s.stride + kx) as isize - s.pad() as isize;
                if iy < 0 || ix < 0 || iy >= xg.height as isize || ix >= xg.width as isize {
                    continue;
                }
                for ci in 0..s.cin {
                    for co in 0..s.cout {
                        let w = ((ky * s.kernel + kx) * s.cin + ci) * s.cout + co;
                        f(at(xg, n, iy, ix, ci), w, at(zg, n, oy as isize, ox as isize, co));
                    }
                }
            }
        }
    }
}

/// Every unit of this processor, with the relative error that its products may have.
fn units() -> Vec<(Unit, f64)> {
    let mut units: Vec<_> = Isa::all().into_iter().map(|isa| (Unit::Vector(isa), 3e-6)).collect();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if amx::available() {
        units.extend([(Unit::Matrix(amx::Split::Three), 1e-5), (Unit::Matrix(amx::Split::One), 1e-2)]);
    }
    units
}

/// Root mean square of the differences within `tolerance` of that of the values, none 20 times that.
fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    let mean = |square: f64| (square / expected.len() as f64).sqrt();
    let scale = mean(expected.iter().map(|e| e * e).sum());
    let differences = || found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs());
    let error = mean(differences().map(|d| d * d).sum());
    assert!(error <= tolerance * scale, "{what}: {error} of {scale}");
    for (i, d) in differences().enumerate() {
        assert!(d <= 20.0 * tolerance * scale, "{what}[{i}]: {} is not {}", found[i], expected[i]);
    }
}

fn check((unit, tolerance): (Unit, f64), s: ConvShape, images: usize, height: usize, width: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let xg = Geometry { images, height, width, channels: s.cin, pad: s.pad() };
    let zg = s.output(xg);
    let dzg = zg.with_pad(s.pad());
    let x = random_map(xg, &mut rng);
    let dz = random_map(dzg, &mut rng);
    let w: Vec<f32> = (0..s.weights()).map(|_| rng.random_range(-1.0..1.0)).collect();

    let mut z = vec![f32::NAN; zg.len()];
    forward_on(unit, s, xg, &x, &w, zg, &mut z);
    let mut expected = vec![0f64; zg.len()];
    every_product(s, xg, zg, |xi, wi, zi| expected[zi] += f64::from(x[xi]) * f64::from(w[wi]));
    assert_close("z", &z, &expected, tolerance);

    let dxg = xg.with_pad(0);
    let mut expected = vec![0f64; dxg.len()];
    every_product(s, dxg, dzg, |xi, wi, zi| expected[xi] += f64::from(dz[zi]) * f64::from(w[wi]));
    let mut dx = vec![f32::NAN; dxg.len()];
    backward_input_on(unit, s, dzg, &dz, &w, dxg, &mut dx, false);
    assert_close("dx", &dx, &expected, tolerance);
    let mut dx = vec![2f32; dxg.len()];
    backward_input_on(unit, s, dzg, &dz, &w, dxg, &mut dx, true);
    expected.iter_mut().for_each(|e| *e += 2.0);
    assert_close("dx + 2", &dx, &expected, tolerance);

    let mut expected = vec![1f64; s.weights()];
    every_product(s, xg, dzg, |xi, wi, zi| expected[wi] += f64::from(x[xi]) * f64::from(dz[zi]));
    let mut dw = vec![1f32; s.weights()];
    backward_weights_on(unit, s, xg, &x, dzg, &dz, &mut dw);
    assert_close("dw + 1", &dw, &expected, tolerance);
}

#[test]
fn all_three_passes_match_the_formula_on_every_instruction_set() {
    for unit in units() {
        for (kernel, stride) in [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)] {
            for (cin, cout) in [(3, 16), (8, 8), (24, 40), (16, 64)] {
                check(unit, ConvShape { kernel, stride, cin, cout, precision: Precision::Highest }, 3, 8, 8);
                check(unit, ConvShape { kernel, stride, cin, cout, precision: Precision::Highest }, 2, 7, 10);
            }
        }
    }
}

#[test]
fn a_single_image_and_a_single_pixel_work() {
    for unit in units() {
        check(
            unit,
            ConvShape { kernel: 3, stride: 2, cin: 8, cout: 8, precision: Precision::Highest },
            1,
            1,
            1,
        );
        check(
            unit,
            ConvShape { kernel: 3, stride: 1, cin: 8, cout: 8, precision: Precision::Highest },
            1,
            2,
            1,
        );
    }
}

#[test]
fn many_pixels_are_summed_in_parts() {
    for (images, side) in [(9, 32), (70, 32)] {
        let s = ConvShape { kernel: 1, stride: 1, cin: 8, cout: 72, precision: Precision::Highest };
        assert!(images * side * side / PART_PIXELS > 1);
        check((Unit::Vector(Isa::detect()), 3e-6), s, images, side, side);
    }
}

#[test]
fn large_weights_take_the_path_without_partial_sums() {
    let s = ConvShape { kernel: 3, stride: 1, cin: 608, cout: 968, precision: Precision::Highest };
    assert!(PARTIAL_VALUES / s.weights() < 2);
    check((Unit::Vector(Isa::detect()), 3e-6), s, 1, 2, 2);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for precision in [Precision::Highest, Precision::High, Precision::Medium] {
        threads_agree(ConvShape { kernel: 3, stride: 1, cin: 16, cout: 32, precision });
        threads_agree(ConvShape { kernel: 3, stride: 2, cin: 16, cout: 80, precision });
    }
}

fn threads_agree(s: ConvShape) {
    let xg = Geometry { images: 20, height: 8, width: 8, channels: 16, pad: 1 };
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let (x, dz) = (random_map(xg, &mut rng), random_map(s.output(xg), &mut rng));
    let w: Vec<f32> = (0..s.weights()).map(|_| rng.random_range(-1.0..1.0)).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut z, mut dw) = (vec![0f32; s.output(xg).len()], vec![0f32; s.weights()]);
        pool.install(|| {
            forward(s, xg, &x, &w, s.output(xg), &mut z);
            backward_weights(s, xg, &x, s.output(xg), &dz, &mut dw);
        });
        (z, dw)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn one_long_row_of_pixels_is_cut_into_pieces() {
    for unit in units() {
        let s = ConvShape { kernel: 1, stride: 1, cin: 40, cout: 24, precision: Precision::Highest };
        for rows in [1, 15, 17, 513, 700] {
            check(unit, s, rows, 1, 1);
        }
    }
}

#[test]
fn maps_of_every_width_take_tiles_along_rows_or_through_their_ends() {
    for unit in units() {
        for width in [2, 4, 8, 14, 16, 17, 28, 33] {
            for stride in [1, 2] {
                let s = ConvShape { kernel: 3, stride, cin: 32, cout: 48, precision: Precision::Highest };
                check(unit, s, 5, 4, width);
            }
        }
    }
}
