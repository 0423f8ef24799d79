//! Golden: the check that this machine gives the vectors which an artefact was made with.

use latentd_model::{Golden, ImageBytes};

use super::Embedder;
use crate::outcome::EmbedError;

/// Why the golden check did not pass.
#[derive(Debug, thiserror::Error)]
pub enum GoldenCheckError {
    /// The golden pictures cannot be read.
    #[error(transparent)]
    Read(#[from] latentd_model::GoldenError),
    /// A picture gave no embedding.
    #[error("golden picture {name}: {source}")]
    Embed {
        /// File name.
        name: String,
        /// Why.
        source: EmbedError,
    },
    /// A picture gave another embedding.
    #[error(
        "golden picture {name} has cosine {cosine:.6} to its expected vector, below {min}: this machine does not give the vectors this artefact was made with"
    )]
    Differs {
        /// File name.
        name: String,
        /// What was found.
        cosine: f32,
        /// What is asked for.
        min: f32,
    },
    /// There is nothing to check with.
    #[error("the artefact has no golden pictures")]
    Empty,
}

impl Embedder {
    /// Runs the golden pictures through the whole path and gives the worst cosine.
    ///
    /// # Errors
    /// See [`GoldenCheckError`].
    pub async fn check_golden(&self) -> Result<f32, GoldenCheckError> {
        let mut worst = f32::INFINITY;
        for picture in self.0.artefact.golden()?.pictures {
            let name = picture.name;
            let embedded = match self.embed_one(ImageBytes::from(picture.bytes), false).await {
                Ok(embedded) => embedded,
                Err(source) => return Err(GoldenCheckError::Embed { name, source }),
            };
            let cosine = embedded.embedding.cosine(&picture.expected);
            if cosine < Golden::MIN_COSINE {
                return Err(GoldenCheckError::Differs { name, cosine, min: Golden::MIN_COSINE });
            }
            worst = worst.min(cosine);
        }
        if worst.is_finite() { Ok(worst) } else { Err(GoldenCheckError::Empty) }
    }
}
