//! What is evaluated: anything that turns pictures into embeddings.

use latentd_model::{Embedding, Pixels, Preprocess};
use serde::{Deserialize, Serialize};

use super::error::EvalError;

/// Whatever a subject fails with.
pub type EmbedError = Box<dyn std::error::Error + Send + Sync>;

/// Embeds pictures of the exact size that the evaluation's preprocessing makes, one vector each.
pub type Embed<'a> = Box<dyn FnMut(&[Pixels]) -> Result<Vec<Embedding>, EmbedError> + 'a>;

/// Which state of a run was measured: its figures are not those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Steps of the checkpoint.
    pub step: u64,
    /// Cells a side of the readout's grid.
    pub grid: usize,
    /// Dimensions of an embedding.
    pub dims: usize,
    /// Whether it was whitened.
    pub whitened: bool,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { step, grid, dims, whitened } = self;
        let white = if *whitened { "whitened" } else { "not whitened" };
        write!(f, "step {step}, grid {grid}, {dims} dimensions, {white}")
    }
}

/// An encoder under evaluation.
pub struct Subject<'a> {
    /// How it is called in the table.
    pub name: String,
    /// Whether it is there to be compared with.
    pub baseline: bool,
    /// What it wants done to a picture first, where that is not what the evaluation does for all.
    pub preprocess: Option<Preprocess>,
    /// Which state of a run it is, where it is of one.
    pub measured: Option<Measured>,
    embed: Embed<'a>,
}

impl std::fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subject({})", self.name)
    }
}

impl<'a> Subject<'a> {
    /// The encoder in question.
    pub fn new(
        name: impl Into<String>,
        embed: impl FnMut(&[Pixels]) -> Result<Vec<Embedding>, EmbedError> + 'a,
    ) -> Self {
        Self { name: name.into(), baseline: false, preprocess: None, measured: None, embed: Box::new(embed) }
    }

    /// An encoder to compare with, such as one of random weights.
    pub fn baseline(
        name: impl Into<String>,
        embed: impl FnMut(&[Pixels]) -> Result<Vec<Embedding>, EmbedError> + 'a,
    ) -> Self {
        Self { baseline: true, ..Self::new(name, embed) }
    }

    /// The same, said to be that state of a run.
    #[must_use]
    pub fn of_run(self, measured: Measured) -> Self {
        Self { measured: Some(measured), ..self }
    }

    /// The same as another encoder to compare with, under a name and with a preprocessing of its own.
    #[must_use]
    pub fn as_rival(self, name: impl Into<String>, preprocess: Preprocess) -> Self {
        Self { name: name.into(), baseline: true, preprocess: Some(preprocess), ..self }
    }

    /// One embedding for each picture.
    ///
    /// # Errors
    /// Its own error, or another number of vectors than pictures.
    pub fn embed(&mut self, pictures: &[Pixels]) -> Result<Vec<Embedding>, EvalError> {
        let failed = |source| EvalError::Embed { subject: self.name.clone(), source };
        let embeddings = (self.embed)(pictures).map_err(failed)?;
        if embeddings.len() != pictures.len() {
            return Err(EvalError::Shape(format!(
                "{}: {} vectors for {} pictures",
                self.name,
                embeddings.len(),
                pictures.len()
            )));
        }
        Ok(embeddings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_the_subject() {
        let picture = Pixels::new(1, 1, vec![1, 2, 3]).unwrap();
        let mut broken = Subject::new("mine", |_: &[Pixels]| Err("out of order".into()));
        let error = broken.embed(std::slice::from_ref(&picture)).unwrap_err().to_string();
        assert_eq!(error, "mine: embedding failed: out of order");
        let mut short = Subject::baseline("other", |_: &[Pixels]| Ok(Vec::new()));
        assert!(short.baseline);
        assert!(short.embed(&[picture]).unwrap_err().to_string().contains("0 vectors for 1 pictures"));
    }
}
