"""The model in Flax NNX: arrays in, arrays out; no files, no strings, no global state.

`CLIP` is the joint model, `TextTransformer` and `VisionTransformer` are its towers, each of use alone;
`LearnedMetric` is a Siamese head on any vectors. All are plain
pytrees of `nnx.Param`s. Make a fresh one with `rngs=flax.nnx.Rngs(seed)`, or without values with `rngs=Abstract()`;
`jaxclip.load` fills one from a checkpoint.

The parameters' paths:

    logit_scale
    text.token_embedding.embedding      text.position_embedding.embedding
    text.blocks[N].…                    text.final_norm.{scale,bias}        text.projection.weight
    vision.class_embedding              vision.patch_embedding.kernel       vision.position_embedding
    vision.pre_norm.{scale,bias}        vision.blocks[N].…                  vision.post_norm.{scale,bias}
    vision.projection.weight

and of a block `norm1.{scale,bias}`, `attention.{query,key,value,out}.{weight,bias}`, `norm2.{scale,bias}` and
`mlp.{fc1,fc2}.{weight,bias}`. Weights are (out, in), the patch embedding's kernel (height, width, channels, out).

`jaxclip.nn.tap` names every intermediate value.
"""

from jaxclip.nn.clip import CLIP, CLIPOutput
from jaxclip.nn.initialization import Abstract
from jaxclip.nn.metric import LearnedMetric
from jaxclip.nn.tap import Tap, no_tap, record
from jaxclip.nn.text import TextOutput, TextTransformer
from jaxclip.nn.transformer import MLP, Attention, Block
from jaxclip.nn.vision import VisionOutput, VisionTransformer

__all__ = [
    "CLIP",
    "MLP",
    "Abstract",
    "Attention",
    "Block",
    "CLIPOutput",
    "LearnedMetric",
    "Tap",
    "TextOutput",
    "TextTransformer",
    "VisionOutput",
    "VisionTransformer",
    "no_tap",
    "record",
]
