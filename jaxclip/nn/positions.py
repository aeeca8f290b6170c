"""Position embeddings of a vision transformer at another image size."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def interpolate_positions(
    positions: Float[Array, "rows columns width"], rows: int, columns: int
) -> Float[Array, "new_rows new_columns width"]:
    """Bicubic interpolation of a grid of position embeddings to `rows` × `columns`.

    As `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, which transformers uses: Keys' kernel
    with a = -0.75, no antialiasing, edges repeated. (`jax.image.resize` has a = -0.5 and antialiases; open_clip
    antialiases.)
    """
    along_rows = _bicubic_weights(positions.shape[0], rows)
    along_columns = _bicubic_weights(positions.shape[1], columns)
    return jnp.einsum(
        "ri,cj,ijw->rcw",
        jnp.asarray(along_rows, positions.dtype),
        jnp.asarray(along_columns, positions.dtype),
        positions,
    )


def _bicubic_weights(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    """Row i holds the weights of the old points in the new point i."""
    source = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    first = np.floor(source).astype(int)
    weights = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        point = first + offset
        np.add.at(weights, (np.arange(new_size), np.clip(point, 0, size - 1)), _keys_kernel(np.abs(source - point)))
    return weights


def _keys_kernel(distance: Float[np.ndarray, " n"], a: float = -0.75) -> Float[np.ndarray, " n"]:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, equation 4."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
