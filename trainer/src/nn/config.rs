//! The shape of an encoder: which ResNet, how wide, for which picture size.

use serde::{Deserialize, Serialize};

use super::kernels::precision::Precision;

/// A residual network of He et al. 2015, "Deep Residual Learning for Image Recognition".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Arch {
    /// Two basic blocks a stage.
    Resnet18,
    /// Basic blocks, 3-4-6-3.
    Resnet34,
    /// Bottleneck blocks, 3-4-6-3.
    Resnet50,
}

/// What a residual block is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// 3×3, 3×3.
    Basic,
    /// 1×1, 3×3, 1×1 with four times the channels at its end.
    Bottleneck,
}

impl Arch {
    /// Blocks in each of the four stages.
    pub fn depths(self) -> [usize; 4] {
        match self {
            Arch::Resnet18 => [2, 2, 2, 2],
            Arch::Resnet34 | Arch::Resnet50 => [3, 4, 6, 3],
        }
    }

    /// The kind of block it is built from.
    pub fn block_kind(self) -> BlockKind {
        match self {
            Arch::Resnet18 | Arch::Resnet34 => BlockKind::Basic,
            Arch::Resnet50 => BlockKind::Bottleneck,
        }
    }

    /// The name as written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Arch::Resnet18 => "resnet18",
            Arch::Resnet34 => "resnet34",
            Arch::Resnet50 => "resnet50",
        }
    }
}

/// The first layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 3×3 stride 1 and no pooling: for pictures of up to 64 px, as SimCLR's appendix B.9 does.
    Cifar,
    /// 7×7 stride 2, then max-pool 3×3 stride 2.
    Imagenet,
}

impl Stem {
    /// The stem that suits a picture size in pixels.
    pub fn for_image_size(size: usize) -> Self {
        if size <= 64 { Stem::Cifar } else { Stem::Imagenet }
    }
}

/// What normalises between a convolution and its ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Batch norm (Ioffe and Szegedy 2015), by the statistics of each view's batch.
    #[default]
    Batch,
    /// Group norm over at most 16 groups, and weight standardisation: no statistics of the batch,
    /// so that small batches train as large ones do (Richemond et al. 2020, "BYOL works even
    /// without batch statistics").
    GnWs,
}

impl Norm {
    /// The name as a manifest has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Norm::Batch => "batch_norm",
            Norm::GnWs => "group_norm_weight_standardisation",
        }
    }

    /// Channels of a group: 16 groups, or as many as divide the channels.
    pub fn group(channels: usize) -> usize {
        let groups = (1..=channels.min(16)).rev().find(|g| channels.is_multiple_of(*g));
        channels / groups.unwrap_or(1)
    }
}

/// Everything needed to build an encoder but its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Which ResNet.
    pub arch: Arch,
    /// Channel multiplier; 1.0 is the paper's width (64 channels in the first stage).
    pub width: f64,
    /// Height and width of the input in pixels.
    pub image_size: usize,
    /// First layer.
    pub stem: Stem,
    /// Mean of R, G, B in units of pixel / 255.
    pub mean: [f32; 3],
    /// Standard deviation of R, G, B in units of pixel / 255.
    pub std: [f32; 3],
    /// How exactly training multiplies.
    #[serde(default)]
    pub precision: Precision,
    /// What normalises.
    #[serde(default)]
    pub norm: Norm,
    /// Whether training keeps each block's input alone and computes the rest again when it goes
    /// backward: less memory for a third more time.
    #[serde(default)]
    pub recompute: bool,
    /// Cells a side that the last map is averaged in: 1, the whole map, is the network's; more keep where in the picture
    /// something was. Training takes 1; the readout of a trained encoder may take more.
    #[serde(
        default = "latentd_model::manifest::whole_map",
        skip_serializing_if = "latentd_model::manifest::is_whole_map"
    )]
    pub grid: usize,
}

/// One residual block: its name in the weights and its channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSpec {
    /// `stage{s}.block{b}`, stages from 1, blocks from 0.
    pub name: String,
    /// Basic or bottleneck.
    pub kind: BlockKind,
    /// Channels in.
    pub cin: usize,
    /// Channels between the block's convolutions.
    pub mid: usize,
    /// Channels out.
    pub cout: usize,
    /// Stride of the block's 3×3 (its first one in a basic block).
    pub stride: usize,
}

impl BlockSpec {
    /// Whether the shortcut is a 1×1 convolution with its own norm.
    pub fn has_projection(&self) -> bool {
        self.stride != 1 || self.cin != self.cout
    }

    /// The block's convolutions: (index from 1, kernel, stride, channels in, channels out).
    pub fn convolutions(&self) -> Vec<(usize, usize, usize, usize, usize)> {
        match self.kind {
            BlockKind::Basic => vec![(1, 3, self.stride, self.cin, self.mid), (2, 3, 1, self.mid, self.cout)],
            BlockKind::Bottleneck => vec![
                (1, 1, 1, self.cin, self.mid),
                (2, 3, self.stride, self.mid, self.mid),
                (3, 1, 1, self.mid, self.cout),
            ],
        }
    }
}

impl EncoderConfig {
    /// ImageNet's channel means (R, G, B; pixel / 255), the field's default.
    pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    /// ImageNet's channel standard deviations (R, G, B; pixel / 255).
    pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

    /// A configuration with the stem that suits the size and ImageNet's normalisation.
    pub fn new(arch: Arch, width: f64, image_size: usize) -> Self {
        Self {
            arch,
            width,
            image_size,
            stem: Stem::for_image_size(image_size),
            mean: Self::IMAGENET_MEAN,
            std: Self::IMAGENET_STD,
            precision: Precision::default(),
            norm: Norm::default(),
            recompute: false,
            grid: 1,
        }
    }

    /// Channels of the stem, and of the first stage before any expansion: a multiple of 8.
    pub fn stem_channels(&self) -> usize {
        (((64.0 * self.width) / 8.0).round() as usize).max(1) * 8
    }

    /// Kernel and stride of the stem's convolution; its padding is kernel / 2.
    pub fn stem_convolution(&self) -> (usize, usize) {
        match self.stem {
            Stem::Cifar => (3, 1),
            Stem::Imagenet => (7, 2),
        }
    }

    /// All blocks in order.
    pub fn blocks(&self) -> Vec<BlockSpec> {
        let kind = self.arch.block_kind();
        let expansion = match kind {
            BlockKind::Basic => 1,
            BlockKind::Bottleneck => 4,
        };
        let mut cin = self.stem_channels();
        let mut blocks = Vec::new();
        for (stage, &depth) in self.arch.depths().iter().enumerate() {
            let mid = self.stem_channels() << stage;
            for block in 0..depth {
                let cout = mid * expansion;
                let stride = if block == 0 && stage > 0 { 2 } else { 1 };
                let name = format!("stage{}.block{block}", stage + 1);
                blocks.push(BlockSpec { name, kind, cin, mid, cout, stride });
                cin = cout;
            }
        }
        blocks
    }

    /// Channels of the last map.
    pub fn channels(&self) -> usize {
        self.blocks().last().map_or(0, |b| b.cout)
    }

    /// Dimensions of the representation: channels times the grid's cells.
    pub fn dim(&self) -> usize {
        self.channels() * self.grid * self.grid
    }

    /// Height and width of the last map.
    pub fn map_size(&self) -> usize {
        let after_stem = match self.stem {
            Stem::Cifar => self.image_size,
            Stem::Imagenet => self.image_size.div_ceil(2).div_ceil(2),
        };
        self.blocks().iter().fold(after_stem, |size, block| size.div_ceil(block.stride))
    }

    /// What is wrong with it, if anything.
    pub fn validate(&self) -> Result<(), String> {
        if !(0.05..=8.0).contains(&self.width) {
            return Err(format!("width {} is outside 0.05 to 8", self.width));
        }
        if !(8..=1024).contains(&self.image_size) {
            return Err(format!("image size {} is outside 8 to 1024 px", self.image_size));
        }
        if self.std.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err("every std must be above 0".into());
        }
        if !(1..=self.map_size()).contains(&self.grid) {
            return Err(format!(
                "a grid of {} on a last map of {} pixels a side",
                self.grid,
                self.map_size()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_representation_has_the_papers_dimensions() {
        assert_eq!(EncoderConfig::new(Arch::Resnet18, 1.0, 224).dim(), 512);
        assert_eq!(EncoderConfig::new(Arch::Resnet50, 1.0, 224).dim(), 2048);
        assert_eq!(EncoderConfig::new(Arch::Resnet18, 0.25, 32).dim(), 128);
    }

    #[test]
    fn a_grid_multiplies_the_dimensions_and_fits_the_last_map() {
        let grid =
            |image_size, grid| EncoderConfig { grid, ..EncoderConfig::new(Arch::Resnet18, 0.25, image_size) };
        assert_eq!((grid(64, 4).map_size(), grid(64, 4).dim()), (8, 128 * 16));
        assert_eq!(grid(224, 7).map_size(), 7);
        assert!(grid(224, 7).validate().is_ok());
        assert!(grid(224, 8).validate().is_err() && grid(224, 0).validate().is_err());
        let json = serde_json::to_string(&grid(64, 1)).unwrap();
        assert!(
            !json.contains("grid"),
            "what was written before there were grids reads and writes the same: {json}"
        );
        assert_eq!(serde_json::from_str::<EncoderConfig>(&json).unwrap(), grid(64, 1));
    }

    #[test]
    fn only_shape_changes_get_a_projection() {
        let blocks = EncoderConfig::new(Arch::Resnet18, 1.0, 32).blocks();
        let with: Vec<_> = blocks.iter().filter(|b| b.has_projection()).map(|b| b.name.as_str()).collect();
        assert_eq!(with, ["stage2.block0", "stage3.block0", "stage4.block0"]);
        let bottleneck = EncoderConfig::new(Arch::Resnet50, 1.0, 224).blocks();
        assert!(bottleneck[0].has_projection(), "64 to 256 channels");
    }
}
