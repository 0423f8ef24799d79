//! POST /preprocess: the picture that the encoder sees.

use std::io::Cursor;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use latentd_model::Pixels;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::embed::RawBytes;
use super::extract::Payload;
use super::input::{Inputs, inputs};
use super::problem::Problem;
use crate::app::AppState;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(preprocess))
}

/// What the encoder sees of a picture
///
/// The picture after orientation, colour handling and resize, exactly as the encoder gets it.
#[utoipa::path(
    post, path = "/preprocess", tag = "embed",
    request_body(description = "One picture, in any of the forms of /embed", content(
        (RawBytes = "image/*"), (RawBytes = "application/octet-stream"),
        (super::embed::ImageForm = "multipart/form-data"), (super::input::JsonInputs = "application/json"),
    )),
    responses(
        (status = 200, description = "A PNG of the encoder's size", body = RawBytes, content_type = "image/png"),
        (status = "4XX", description = "No usable picture", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn preprocess(State(app): State<AppState>, payload: Payload) -> Result<impl IntoResponse, Problem> {
    let Inputs { mut images, permit, held: _held, .. } = inputs(payload, &app).await?;
    let (Some(input), true) = (images.pop(), images.is_empty()) else {
        let detail = "this route takes one picture at a time";
        return Err(Problem::bad_request("too_many_images", detail));
    };
    let image = input.map_err(|error| Problem::unprocessable(error.code, error.message))?;
    let pixels = app.embedder().preprocess(image, Some(permit)).await?;
    let png = png(&pixels).map_err(|error| {
        tracing::error!(%error, "cannot write a PNG");
        Problem::internal()
    })?;
    Ok(([(header::CONTENT_TYPE, "image/png")], png))
}

fn png(pixels: &Pixels) -> image::ImageResult<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    let encoder = PngEncoder::new(&mut out);
    encoder.write_image(pixels.as_bytes(), pixels.width(), pixels.height(), ExtendedColorType::Rgb8)?;
    Ok(out.into_inner())
}
