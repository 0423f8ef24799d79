//! Tests of the encoder on tiny graphs; they skip when there is no ONNX Runtime.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::runtime::RuntimeError;
use crate::tiny_onnx::{self, End, FLOAT, UINT8};

const TINY: GraphShape = GraphShape { height: 4, width: 5, dim: 60 };

fn open(onnx: &[u8], shape: GraphShape) -> Option<Result<Encoder, EncoderError>> {
    match Encoder::from_onnx(onnx, shape, &SessionOptions::default()) {
        Err(EncoderError::Runtime(RuntimeError::NotFound { .. })) => {
            println!("skipped: no ONNX Runtime here");
            None
        }
        outcome => Some(outcome),
    }
}

fn tiny() -> Option<Encoder> {
    open(&tiny_onnx::encoder(4, 5), TINY).map(Result::unwrap)
}

fn picture(seed: u8) -> Pixels {
    Pixels::new(4, 5, (0..60).map(|i| seed.wrapping_mul(31).wrapping_add(i * 7)).collect()).unwrap()
}

#[test]
fn a_picture_alone_and_in_a_batch_is_the_same() {
    let Some(mut encoder) = tiny() else { return };
    let batch: Vec<Pixels> = (1..=32).map(picture).collect();
    let together = encoder.embed(&batch).unwrap();
    assert_eq!(together.len(), 32);
    for (picture, found) in batch.iter().zip(&together) {
        let alone = encoder.embed(std::slice::from_ref(picture)).unwrap();
        assert!(alone[0].cosine(found) > 0.999_99);
        let expected =
            Embedding::from_unnormalised(picture.as_bytes().iter().map(|&b| f32::from(b)).collect());
        assert!(expected.unwrap().cosine(found) > 0.999_99);
    }
    assert!(encoder.embed(&[]).unwrap().is_empty());
}

#[test]
fn runs_in_lanes_are_the_same_runs() {
    let Some(mut encoder) = tiny() else { return };
    assert!(encoder.warm_up(5).unwrap().is_empty(), "nothing to prepare on a CPU");
    let batches: Vec<Vec<Pixels>> =
        [3, 5, 1, 2, 7, 4].map(|count| (0..count).map(|n| picture(count * 9 + n)).collect()).into();
    let plain: Vec<_> = batches.iter().map(|batch| encoder.embed(batch).unwrap()).collect();
    let runs = encoder.open_lanes(5, &Allocator::default()).unwrap();
    assert_eq!(runs.iter().map(|run| run.pictures).collect::<Vec<_>>(), [5, 1, 2, 3, 4]);
    // 7 are more than any lane takes.
    for _ in 0..3 {
        let bound: Vec<_> = batches.iter().map(|batch| encoder.embed(batch).unwrap()).collect();
        assert_eq!(bound, plain);
    }
    assert!(encoder.embed(&[]).unwrap().is_empty());
    let other = Pixels::new(5, 4, vec![1; 60]).unwrap();
    assert!(matches!(encoder.embed(&[picture(1), other]), Err(EncoderError::PictureSize { index: 1, .. })));
    // 5 pictures in a lane of 6: the rest of it is thrown away.
    encoder.open_lanes(8, &Allocator::default()).unwrap();
    assert_eq!(encoder.embed(&batches[4]).unwrap(), plain[4]);
    assert_eq!(encoder.embed(&batches[1]).unwrap(), plain[1]);
}

#[test]
fn raw_batches_keep_their_order_whatever_their_layout() {
    let Some(mut encoder) = tiny() else { return };
    let batch =
        ndarray::Array4::from_shape_fn((3, 4, 5, 3), |(b, y, x, c)| (b * 60 + y * 15 + x * 3 + c + 1) as u8);
    let rows = encoder.embed_raw(batch.view()).unwrap();
    assert_eq!(rows.dim(), (3, 60));
    let reversed = encoder.embed_raw(batch.slice(ndarray::s![..;-1, .., .., ..])).unwrap();
    assert_eq!(reversed.row(0), rows.row(2));
    assert_eq!(encoder.embed_raw(batch.slice(ndarray::s![..0, .., .., ..])).unwrap().dim(), (0, 60));
    let wrong = batch.slice(ndarray::s![.., ..3, .., ..]);
    assert!(matches!(encoder.embed_raw(wrong), Err(EncoderError::Graph { what: "input", .. })));
}

#[test]
fn a_picture_of_another_size_is_named() {
    let Some(mut encoder) = tiny() else { return };
    let other = Pixels::new(5, 4, vec![1; 60]).unwrap();
    let error = encoder.embed(&[picture(1), other]).unwrap_err();
    assert_eq!(error.to_string(), "picture 1 is 4x5, but the encoder takes 5x4");
    assert!(encoder.embed(&[picture(1)]).is_ok(), "the encoder goes on");
}

#[test]
fn a_vector_without_direction_is_refused() {
    let Some(mut encoder) = tiny() else { return };
    let black = Pixels::new(4, 5, vec![0; 60]).unwrap();
    assert!(matches!(encoder.embed(&[picture(1), black]), Err(EncoderError::Output { index: 1, .. })));
    let Some(raw) = open(&tiny_onnx::unnormalised(4, 5), TINY) else { return };
    assert!(matches!(raw.unwrap().embed(&[picture(1)]), Err(EncoderError::Output { index: 0, .. })));
}

#[test]
fn graphs_of_another_shape_are_refused() {
    let input: End<'_> = ("image", UINT8, &[None, Some(4), Some(5), Some(3)]);
    let output: End<'_> = ("embedding", FLOAT, &[None, Some(60)]);
    let cases: [(End<'_>, End<'_>, &str); 5] = [
        (("picture", UINT8, input.2), output, "input"),
        (("image", FLOAT, input.2), output, "input"),
        (("image", UINT8, &[Some(1), Some(4), Some(5), Some(3)]), output, "input"),
        (("image", UINT8, &[None, Some(3), Some(4), Some(5)]), output, "input"),
        (input, ("vector", FLOAT, output.2), "output"),
    ];
    for (input, output, expected) in cases {
        let onnx = tiny_onnx::flattening(input, output);
        match open(&onnx, TINY) {
            None => return,
            Some(Err(EncoderError::Graph { what, .. })) => assert_eq!(what, expected, "{input:?}"),
            Some(other) => panic!("{input:?}: {other:?}"),
        }
    }
    let dim = GraphShape { dim: 59, ..TINY };
    let Some(outcome) = open(&tiny_onnx::encoder(4, 5), dim) else { return };
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("embedding") && error.contains("59") && error.contains("60"), "{error}");
}

#[test]
fn what_is_no_graph_is_refused() {
    let whole = tiny_onnx::encoder(4, 5);
    for onnx in [&b""[..], b"no graph at all", &whole[..whole.len() / 2]] {
        match open(onnx, TINY) {
            None => return,
            Some(outcome) => assert!(outcome.is_err()),
        }
    }
}

#[test]
fn a_missing_gpu_is_an_error_and_no_fallback() {
    for (wanted, name) in [(Device::Cuda(0), "cuda:0"), (Device::TensorRt(1), "tensorrt:1")] {
        let options = SessionOptions { device: wanted, ..SessionOptions::default() };
        match Encoder::from_onnx(&tiny_onnx::encoder(4, 5), TINY, &options) {
            Err(error @ EncoderError::Device { device, .. }) => {
                assert_eq!((device, device.to_string().as_str()), (wanted, name));
                let named = error.to_string().contains("those of TensorRT");
                assert_eq!(named, wanted == Device::TensorRt(1), "{error}");
            }
            Err(EncoderError::Runtime(_)) => println!("skipped: no ONNX Runtime here"),
            Ok(mut encoder) => assert!(encoder.embed(&[picture(1)]).is_ok(), "there is a GPU"),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn sessions_run_on_many_threads() {
    if tiny().is_none() {
        return;
    }
    let expected = tiny().unwrap().embed(&[picture(9)]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut encoder = tiny().unwrap();
                for _ in 0..50 {
                    assert_eq!(encoder.embed(&[picture(9)]).unwrap(), expected);
                }
            });
        }
    });
}
