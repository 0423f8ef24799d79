//! Runs that start from trained networks.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use crate::support::{SMALL, fail, succeed, trainer, write_pictures};

/// The online encoder's arrays of a checkpoint: shape and bytes by name.
fn encoder(checkpoint: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(checkpoint).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let online = |(name, view): (String, TensorView)| {
        let name = name.strip_prefix("online/st")?;
        Some((format!("st{name}"), (view.shape().to_vec(), view.data().to_vec())))
    };
    file.tensors().into_iter().filter_map(online).collect()
}

fn train(pictures: &Path, out: &Path, args: &[&str]) -> std::process::Command {
    let mut command = trainer();
    command
        .arg("train")
        .arg(pictures)
        .arg("--out")
        .arg(out)
        .args(["--epochs", "1", "--batch", "16"])
        .args(args);
    command
}

/// An encoder under torchvision's names and in its layout, written as the formula says.
fn torchvision(arrays: &BTreeMap<String, (Vec<usize>, Vec<u8>)>) -> Vec<u8> {
    let mut out: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, (shape, bytes)) in arrays {
        let name = name
            .replace("stem.conv", "conv1")
            .replace("stem.norm", "bn1")
            .replace("shortcut.conv", "downsample.0")
            .replace("shortcut.norm", "downsample.1")
            .replace("stage", "layer")
            .replace("block", "")
            .replace(".norm", ".bn");
        if let [h, w, i, o] = shape[..] {
            let mut moved = vec![0u8; bytes.len()];
            for (at, value) in bytes.chunks_exact(4).enumerate() {
                let (y, x, cin, cout) = (at / (w * i * o), at / (i * o) % w, at / o % i, at % o);
                let to = ((cout * i + cin) * h + y) * w + x;
                moved[4 * to..4 * to + 4].copy_from_slice(value);
            }
            out.push((name, vec![o, i, h, w], moved));
        } else {
            out.push((name, shape.clone(), bytes.clone()));
        }
    }
    out.push(("fc.bias".into(), vec![1], vec![0; 4]));
    let views = out.iter().map(|(n, s, b)| (n.clone(), TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    serialize(views, None).unwrap()
}

#[test]
fn torchvision_weights_arrive_unchanged_and_misfits_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures, 8, 1);
    let shape = ["--width", "0.125", "--image-size", "72", "--hidden", "32"];
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    succeed(train(&pictures, &first, &shape).args(["--seed", "5"]));
    let arrays = encoder(&first.join("checkpoints/step-000000001.safetensors"));
    let file = dir.path().join("resnet.safetensors");
    std::fs::write(&file, torchvision(&arrays)).unwrap();
    succeed(train(&pictures, &second, &shape).arg("--init").arg(&file));
    assert_eq!(encoder(&second.join("checkpoints/step-000000000.safetensors")), arrays);

    let third = dir.path().join("third");
    let said = fail(train(&pictures, &third, &["--image-size", "72"]).arg("--init").arg(&file));
    assert!(said.contains("`stage1.block0.conv1.weight` has shape [3, 3, 8, 8] and the configuration asks for [3, 3, 16, 16]"), "{said}");
    assert!(said.contains("the file fits --arch resnet18 --width 0.125"), "{said}");
    std::fs::write(&file, b"nothing of the kind").unwrap();
    assert!(fail(train(&pictures, &third, &shape).arg("--init").arg(&file)).contains("no safetensors file"));
    assert!(fail(train(&pictures, &third, &shape).args(["--init", "nowhere"])).contains("nowhere: no run"));
    assert!(!third.join("run.json").exists());
}

#[test]
fn an_artefact_is_trained_on_in_its_own_shape() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, run, next) =
        (dir.path().join("pictures"), dir.path().join("run"), dir.path().join("next"));
    write_pictures(&pictures, 24, 1);
    succeed(trainer().arg("train").arg(&pictures).arg("--out").arg(&run).args(SMALL).args(["--epochs", "2"]));
    let export = |args: &[&str]| {
        let mut command = trainer();
        command
            .arg("export")
            .arg(&run)
            .args(["--last", "--models"])
            .arg(dir.path().join("models"))
            .args(args);
        succeed(&mut command);
    };
    export(&["--name", "whole"]);
    export(&["--name", "bare", "--no-weights"]);
    let models = dir.path().join("models");
    let with = |artefact: &str, out: &Path| {
        let mut command = train(&pictures, out, &[]);
        command.arg("--init").arg(models.join(artefact));
        command
    };
    let said = fail(&mut with("bare-v1", &next));
    assert!(said.contains("holds no weights.safetensors"), "{said}");
    succeed(&mut with("whole-v1", &next));
    let start = next.join("checkpoints/step-000000000.safetensors");
    assert_eq!(encoder(&start), encoder(&run.join("checkpoints/step-000000006.safetensors")));
    let said = fail(with("whole-v1", &dir.path().join("other")).args(["--width", "0.25"]));
    assert!(said.contains("the configuration asks for") && said.contains("--width 0.125"), "{said}");
}
