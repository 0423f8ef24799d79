//! The configurations that come with the program: `configs/*.toml`, compiled in.

use crate::config::{ConfigError, RunConfig};

/// A configuration by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// A narrow ResNet-18 on 32-pixel views: a first run on a laptop.
    SmallCpu,
    /// The bundled encoder's: CIFAR-10 on two CPU cores in about an hour.
    #[value(alias = "cifar-cpu")]
    Cifar,
    /// Thousands of pictures, not millions: 64-pixel views, many epochs.
    SmallData,
    /// BYOL's ImageNet recipe as printed: ResNet-50, batch 4096, 1000 epochs.
    #[value(alias = "paper-imagenet-r50")]
    ImagenetR50Paper,
}

impl Preset {
    /// The text of its file.
    #[must_use]
    pub fn toml(self) -> &'static str {
        match self {
            Self::SmallCpu => include_str!("../configs/small-cpu.toml"),
            Self::Cifar => include_str!("../configs/cifar-cpu.toml"),
            Self::SmallData => include_str!("../configs/small-data.toml"),
            Self::ImagenetR50Paper => include_str!("../configs/paper-imagenet-r50.toml"),
        }
    }

    /// Its configuration.
    ///
    /// # Errors
    /// Never: the tests read them all.
    pub fn config(self) -> Result<RunConfig, ConfigError> {
        toml::from_str(self.toml())
            .map_err(|e| ConfigError::Parse { path: format!("{self:?}"), reason: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn all_presets_are_valid_and_the_first_is_the_default() {
        for preset in Preset::value_variants() {
            preset.config().unwrap().validate().unwrap();
        }
        assert_eq!(Preset::SmallCpu.config().unwrap(), RunConfig::default());
        assert_eq!(Preset::ImagenetR50Paper.config().unwrap().micro_batch(), 4096);
    }
}
