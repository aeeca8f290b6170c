"""Contrastive losses: pure functions of features, the same dense, chunked and sharded.

    loss = clip_loss(model.encode_image(pixels), model.encode_text(token_ids), model.logit_scale[...])

All say one thing: vectors that belong together shall have a larger cosine than those that don't. They differ in what
counts as belonging together, and in what it is weighed against.

| loss | belongs together | weighed against | for |
|---|---|---|---|
| `info_nce` | query i, key i | the other keys, or given negatives | CPC, MoCo, retrieval |
| `nt_xent` | two views; or all rows of a label | all other rows | SimCLR, SupCon |
| `clip_loss` | image i, text i; or by `targets` | the other texts, the other images | CLIP |
| `siglip_loss` | image i, text i | every other pair by itself | SigLIP |
| `moco_loss` | query i, key i | a queue of earlier keys (`KeyQueue`, `momentum_update`) | MoCo |
| `cosine_embedding_loss` | the pairs labelled 1 | a margin | scored pairs |
| `triplet_loss` | anchor, positive | the negative, by a margin | metric learning |

The first five are made of the cosines of all pairs, divided by a temperature τ. With sᵢⱼ = cos(qᵢ, kⱼ)/τ

    softmax:  ℓᵢ = −log( exp sᵢᵢ / Σⱼ exp sᵢⱼ )              InfoNCE, NT-Xent, CLIP (both ways), MoCo
    sigmoid:  ℓᵢ = −log σ(sᵢᵢ) − Σ_{j≠i} log σ(−sᵢⱼ)         SigLIP, which adds a bias to s

A lower τ sharpens the softmax: small differences of cosines decide more, and the hardest negatives take most of the
gradient. It is given as `temperature`, or, as checkpoints have it, as `logit_scale` = ln(1/τ); both can be learned
(`clamp_logit_scale` after the optimiser's step).

What holds for all:

- **Vectors are normalised here**, whatever their lengths. (`triplet_loss` leaves it to its metric, which is the cosine
  distance unless told otherwise.) A zero vector has the cosine 0 with everything and gets no gradient.
- **float32 inside**: float16 and bfloat16 are widened first, and the loss is float32; float64 stays. The last digit of
  a cosine, 6e-8, is 6e-8/τ of a logit: at τ = 1e-3 a loss is right to 1e-4.
- **`mask=`** is False for padded rows, which are neither query nor key; whatever they hold, NaN too, reaches neither
  value nor gradient. **`reduction=`** is "mean" (over the rows that count), "sum" or "none".
- **`chunk_size=`** and **`axis_name=`** change memory and devices, not numbers: see `jaxclip.losses.streaming`. Take
  gradients inside `jax.shard_map` or outside it, but leave its `check_vma` on: JAX needs it to get the gradient of a
  mean over devices right.
- Shapes, dtypes, settings and Python numbers that don't fit raise while tracing. **Values** are checked where
  `jax.experimental.checkify` looks for them, and cost nothing elsewhere:

      error, loss = jax.jit(checkify.checkify(clip_loss))(image_features, text_features, logit_scale)
      error.throw()      # "image_features must be finite, got 3 values that are not"
"""

from jaxclip.losses.clip import clamp_logit_scale, clip_loss
from jaxclip.losses.info_nce import info_nce
from jaxclip.losses.moco import KeyQueue, moco_loss, momentum_update
from jaxclip.losses.nt_xent import nt_xent
from jaxclip.losses.pairs import cosine_embedding_loss, triplet_loss
from jaxclip.losses.siglip import siglip_loss

__all__ = [
    "KeyQueue",
    "clamp_logit_scale",
    "clip_loss",
    "cosine_embedding_loss",
    "info_nce",
    "moco_loss",
    "momentum_update",
    "nt_xent",
    "siglip_loss",
    "triplet_loss",
]
