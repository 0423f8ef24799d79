//! How strongly and how often each augmentation acts, for both views.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The distribution of one view: every probability and strength.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    /// Least and greatest share of the picture's area that a crop covers, uniform between.
    pub crop_area: [f64; 2],
    /// Least and greatest width / height of a crop, log-uniform between.
    pub crop_aspect: [f64; 2],
    /// Probability of a left-right flip.
    pub flip_p: f64,
    /// Probability that the four colour jitters below act, in random order.
    pub jitter_p: f64,
    /// An offset uniform in ±brightness is added (pictures are in [0, 1]).
    pub brightness: f64,
    /// The distance to each channel's mean is multiplied by a factor uniform in 1 ± contrast.
    pub contrast: f64,
    /// HSV saturation is multiplied by a factor uniform in 1 ± saturation.
    pub saturation: f64,
    /// HSV hue is turned by an offset uniform in ±hue (1 is the whole circle).
    pub hue: f64,
    /// Probability of greyscale.
    pub grayscale_p: f64,
    /// Probability of a Gaussian blur.
    pub blur_p: f64,
    /// Least and greatest standard deviation of the blur in pixels, uniform between.
    pub blur_sigma: [f64; 2],
    /// Width of the blur's kernel as a share of the view (0.1: 23 pixels at 224).
    pub blur_kernel: f64,
    /// Probability that values at or above the threshold are inverted.
    pub solarize_p: f64,
    /// Where solarisation starts, in [0, 1].
    pub solarize_threshold: f64,
}

impl ViewConfig {
    /// BYOL's T (table 6, first column).
    #[must_use]
    pub fn byol_t1() -> Self {
        Self {
            crop_area: [0.08, 1.0],
            crop_aspect: [3.0 / 4.0, 4.0 / 3.0],
            flip_p: 0.5,
            jitter_p: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
            grayscale_p: 0.2,
            blur_p: 1.0,
            blur_sigma: [0.1, 2.0],
            blur_kernel: 0.1,
            solarize_p: 0.0,
            solarize_threshold: 0.5,
        }
    }

    /// BYOL's T′ (table 6, second column): blur seldom, solarisation sometimes.
    #[must_use]
    pub fn byol_t2() -> Self {
        Self { blur_p: 0.1, solarize_p: 0.2, ..Self::byol_t1() }
    }

    /// Nothing but the whole picture resized: what a test compares with.
    #[must_use]
    pub fn identity() -> Self {
        Self {
            crop_area: [1.0, 1.0],
            flip_p: 0.0,
            jitter_p: 0.0,
            grayscale_p: 0.0,
            blur_p: 0.0,
            ..Self::byol_t1()
        }
    }

    /// Checks every field's range.
    ///
    /// # Errors
    /// The first field out of range, in words.
    pub fn validate(&self) -> Result<(), String> {
        for (name, p) in [
            ("flip_p", self.flip_p),
            ("jitter_p", self.jitter_p),
            ("grayscale_p", self.grayscale_p),
            ("blur_p", self.blur_p),
            ("solarize_p", self.solarize_p),
            ("solarize_threshold", self.solarize_threshold),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
        ] {
            if !(0.0..=1.0).contains(&p) {
                return Err(format!("{name} = {p}: must lie between 0 and 1"));
            }
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return Err(format!("hue = {}: must lie between 0 and 0.5", self.hue));
        }
        if !(0.0..=0.5).contains(&self.blur_kernel) {
            return Err(format!(
                "blur_kernel = {}: must lie between 0 and 0.5 of the view",
                self.blur_kernel
            ));
        }
        let ordered = |name: &str, [low, high]: [f64; 2], least: f64, most: f64| {
            if low >= least && low <= high && high <= most {
                Ok(())
            } else {
                Err(format!("{name} = [{low}, {high}]: must be an ordered pair between {least} and {most}"))
            }
        };
        ordered("crop_area", self.crop_area, 0.001, 1.0)?;
        ordered("crop_aspect", self.crop_aspect, 0.1, 10.0)?;
        ordered("blur_sigma", self.blur_sigma, 0.01, 100.0)
    }
}

/// A named pair of view distributions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// The paper's, for pictures of about 100 pixels and more.
    #[default]
    Byol,
    /// For pictures up to about 64 pixels, see [`Views::small`].
    Small,
}

/// The two view distributions T and T′.
///
/// Read from a table with an optional `preset` ("byol" or "small") and optional `t1` and `t2` tables, whose fields
/// replace the preset's; written out in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ViewsTable")]
pub struct Views {
    /// T, the first view.
    pub t1: ViewConfig,
    /// T′, the second view.
    pub t2: ViewConfig,
}

impl Default for Views {
    fn default() -> Self {
        Self::byol()
    }
}

impl Views {
    /// The paper's two distributions.
    #[must_use]
    pub fn byol() -> Self {
        Self { t1: ViewConfig::byol_t1(), t2: ViewConfig::byol_t2() }
    }

    /// For pictures up to about 64 pixels: no blur, and crops of at least a fifth of the picture.
    ///
    /// Both as SimSiam trains on CIFAR-10 (Chen & He, "Exploring Simple Siamese Representation Learning", 2020,
    /// appendix D; crop scale and colour jitter of its appendix A); colours and solarisation stay BYOL's. A crop of
    /// 8 % of a 32-pixel picture is 9 pixels wide and seldom shows the object, and a blur wipes out what is there.
    #[must_use]
    pub fn small() -> Self {
        let mut views = Self::byol();
        for view in [&mut views.t1, &mut views.t2] {
            view.crop_area = [0.2, 1.0];
            view.blur_p = 0.0;
        }
        views
    }

    /// The pair that `preset` names.
    #[must_use]
    pub fn preset(preset: Preset) -> Self {
        match preset {
            Preset::Byol => Self::byol(),
            Preset::Small => Self::small(),
        }
    }

    /// Checks both views.
    ///
    /// # Errors
    /// The first field out of range, in words, with its view.
    pub fn validate(&self) -> Result<(), String> {
        self.t1.validate().map_err(|e| format!("views.t1.{e}"))?;
        self.t2.validate().map_err(|e| format!("views.t2.{e}"))
    }
}

/// [`Views`] as written by hand.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ViewsTable {
    #[serde(default)]
    preset: Preset,
    #[serde(default)]
    t1: Map<String, Value>,
    #[serde(default)]
    t2: Map<String, Value>,
}

impl TryFrom<ViewsTable> for Views {
    type Error = String;

    fn try_from(table: ViewsTable) -> Result<Self, String> {
        let preset = Self::preset(table.preset);
        let views = Self {
            t1: overlay(&preset.t1, table.t1).map_err(|e| format!("views.t1: {e}"))?,
            t2: overlay(&preset.t2, table.t2).map_err(|e| format!("views.t2: {e}"))?,
        };
        views.validate()?;
        Ok(views)
    }
}

/// `base` with the fields of `changes` in their place.
fn overlay(base: &ViewConfig, changes: Map<String, Value>) -> Result<ViewConfig, serde_json::Error> {
    let mut value = serde_json::to_value(base)?;
    if let Value::Object(fields) = &mut value {
        fields.extend(changes);
    }
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_preset_with_changes_and_writes_all() {
        let views: Views = toml::from_str("preset = \"small\"\n[t2]\nsolarize_p = 0\nhue = 0.05\n").unwrap();
        assert_eq!(views.t1, Views::small().t1);
        assert_eq!(views.t2.solarize_p, 0.0);
        assert_eq!(views.t2.hue, 0.05);
        assert_eq!(views.t2.crop_area, [0.2, 1.0]);
        let text = toml::to_string(&views).unwrap();
        assert!(text.contains("brightness = 0.4\n"), "{text}");
        assert_eq!(toml::from_str::<Views>(&text).unwrap(), views);
        assert_eq!(toml::from_str::<Views>("").unwrap(), Views::byol());
    }

    #[test]
    fn refuses_unknown_fields_and_bad_ranges_by_name() {
        let error = |text: &str| toml::from_str::<Views>(text).unwrap_err().to_string();
        assert!(error("[t1]\nflipp = 1").contains("flipp"));
        assert!(error("t3 = 1").contains("t3"));
        assert!(error("[t2]\nhue = 0.7").contains("views.t2.hue"));
        assert!(error("[t2]\ncrop_area = [0.5, 0.2]").contains("crop_area"));
        assert!(error("[t1]\nflip_p = 1.5").contains("flip_p"));
    }

    #[test]
    fn presets_are_the_papers() {
        let Views { t1, t2 } = Views::byol();
        assert_eq!((t1.blur_p, t1.solarize_p), (1.0, 0.0));
        assert_eq!((t2.blur_p, t2.solarize_p), (0.1, 0.2));
        Views::byol().validate().unwrap();
        Views::small().validate().unwrap();
        ViewConfig::identity().validate().unwrap();
    }
}
