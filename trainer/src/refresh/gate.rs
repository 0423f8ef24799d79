//! The gate: whether a new encoder takes the place of the current one.

use serde::{Deserialize, Serialize};

/// How much better it must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Accept {
    /// The whole 95 % interval of the difference lies above 0.
    Clearly,
    /// The difference lies above 0.
    #[default]
    Better,
    /// Not clearly worse: the interval reaches 0 or more. For new pictures of the same kind, which should be followed.
    NotWorse,
}

/// New against current: the figure that decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is, with where it was measured.
    pub name: String,
    /// Of the new encoder, 0 to 1.
    pub new: f64,
    /// Of the current one, on the same pictures.
    pub current: f64,
    /// 95 % interval of the difference (paired bootstrap).
    pub interval: [f64; 2],
}

/// What is known of the two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// kNN where there are labels, view retrieval otherwise.
    pub decisive: Figure,
    /// Representation std of new and current, on the same pictures.
    pub std: [f64; 2],
    /// Effective rank of new and current.
    pub effective_rank: [f64; 2],
    /// Mean share of the 10 nearest neighbours that both name.
    pub overlap: f64,
}

/// What the gate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether the new one goes through.
    pub accepted: bool,
    /// In a line.
    pub reason: String,
}

/// Below this an encoder has collapsed, see the report's verdict.
const COLLAPSED_STD: f64 = 0.1;
/// An encoder that uses less than this share of the current one's dimensions has lost something.
const LEAST_RANK_SHARE: f64 = 0.5;

/// Decides.
#[must_use]
pub fn decide(evidence: &Evidence, accept: Accept, min_overlap: Option<f64>) -> Decision {
    let Figure { name, new, current, interval: [low, high] } = &evidence.decisive;
    let points = |v: f64| v * 100.0;
    let figures = format!(
        "{name} {:.2} % against {:.2} %, difference {:+.2} points ({:+.2} to {:+.2})",
        points(*new),
        points(*current),
        points(new - current),
        points(*low),
        points(*high)
    );
    let refuse = |why: String| Decision { accepted: false, reason: why };
    let [std, _] = evidence.std;
    if std.is_nan() || std < COLLAPSED_STD {
        return refuse(format!("it has collapsed: representation std {std:.3}"));
    }
    let [rank, before] = evidence.effective_rank;
    if rank < LEAST_RANK_SHARE * before {
        return refuse(format!("it uses fewer dimensions: effective rank {rank:.1} against {before:.1}"));
    }
    if let Some(least) = min_overlap.filter(|least| evidence.overlap < *least) {
        return refuse(format!(
            "it changes too many neighbours: overlap {:.2}, below --min-overlap {least}",
            evidence.overlap
        ));
    }
    let (accepted, asked) = match accept {
        Accept::Clearly => (*low > 0.0, "clearly better"),
        Accept::Better => (new > current, "better"),
        Accept::NotWorse => (*high >= 0.0, "as good"),
    };
    let lead = if accepted { "it is" } else { "it is not" };
    Decision { accepted, reason: format!("{lead} {asked}: {figures}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(new: f64, interval: [f64; 2]) -> Evidence {
        Evidence {
            decisive: Figure { name: "kNN".into(), new, current: 0.5, interval },
            std: [0.9, 0.9],
            effective_rank: [100.0, 110.0],
            overlap: 0.6,
        }
    }

    #[test]
    fn the_difference_decides_as_strictly_as_asked() {
        let clear = evidence(0.55, [0.03, 0.07]);
        let likely = evidence(0.51, [-0.01, 0.03]);
        let worse = evidence(0.49, [-0.03, 0.01]);
        let bad = evidence(0.40, [-0.12, -0.08]);
        let accepted = |accept| [&clear, &likely, &worse, &bad].map(|e| decide(e, accept, None).accepted);
        assert_eq!(accepted(Accept::Clearly), [true, false, false, false]);
        assert_eq!(accepted(Accept::Better), [true, true, false, false]);
        assert_eq!(accepted(Accept::NotWorse), [true, true, true, false]);
        let reason = decide(&worse, Accept::Better, None).reason;
        assert_eq!(
            reason,
            "it is not better: kNN 49.00 % against 50.00 %, difference -1.00 points (-3.00 to +1.00)"
        );
    }

    #[test]
    fn a_collapsed_or_poorer_or_stranger_encoder_is_refused_whatever_it_scores() {
        let good = evidence(0.9, [0.3, 0.5]);
        assert!(!decide(&Evidence { std: [0.01, 0.9], ..good.clone() }, Accept::NotWorse, None).accepted);
        assert!(!decide(&Evidence { std: [f64::NAN, 0.9], ..good.clone() }, Accept::NotWorse, None).accepted);
        let poor = Evidence { effective_rank: [20.0, 110.0], ..good.clone() };
        assert!(decide(&poor, Accept::NotWorse, None).reason.contains("fewer dimensions"));
        assert!(decide(&good, Accept::Better, Some(0.7)).reason.contains("too many neighbours"));
        assert!(decide(&good, Accept::Better, Some(0.5)).accepted);
    }
}
