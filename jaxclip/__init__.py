"""CLIP in Flax (JAX): Hugging Face checkpoints in, the reference's vectors out.

    import jaxclip

    clip = jaxclip.load("openai/clip-vit-base-patch32")
    clip.encode_text(["a cat", "a dog"])      # (2, 512), unit length
    clip.encode_image("photo.jpg")            # (512,)
    clip.model                                # the Flax NNX module: arrays in, arrays out

`jaxclip.nn` holds the model, `jaxclip.config` what a checkpoint states, `jaxclip.checkpoints` and `jaxclip.processing`
the files, strings and images; `jaxclip.similarity` and `jaxclip.losses` compare vectors, and `jaxclip.reference` says
in float64 NumPy, without JAX, what they compute. `jaxclip.search`, `jaxclip.embed_folder`, `jaxclip.Index` and
`jaxclip.similarity_matrix`, `jaxclip.classify`, `jaxclip.evaluate_zero_shot` and `jaxclip.detect` are what the command
line does; `jaxclip.plotting` draws it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxclip import checkpoints, config, losses, nn, plotting, processing, reference, similarity
    from jaxclip.checkpoints import CheckpointError
    from jaxclip.clip import Clip, load
    from jaxclip.compilation_cache import enable_compilation_cache
    from jaxclip.config import CLIPConfig, TextConfig, VisionConfig
    from jaxclip.processing import ImageError
    from jaxclip.similarity import cosine_similarity
    from jaxclip.streaming import EncodedBatch, Failure
    from jaxclip.tasks.classification_metrics import ClassificationMetrics
    from jaxclip.tasks.detection import Detection, detect
    from jaxclip.tasks.evaluation import ClassificationEvaluation, evaluate_linear_probe, evaluate_zero_shot
    from jaxclip.tasks.hits import Hit
    from jaxclip.tasks.index import EmbedResult, Index, IndexChangedError, embed_folder
    from jaxclip.tasks.search import SearchResult, search
    from jaxclip.tasks.similarity_matrix import SimilarityMatrix, similarity_matrix
    from jaxclip.tasks.writer import IndexInUseError
    from jaxclip.tasks.zero_shot import Classification, classify, zero_shot_classifier

__version__ = "0.1.0"

# Name → module that has it; a module's own name stands for itself. Imported when first used (PEP 562), so that what
# needs no JAX doesn't import it.
_EXPORTS = {
    "CLIPConfig": "config",
    "CheckpointError": "checkpoints.errors",
    "Classification": "tasks.zero_shot",
    "ClassificationEvaluation": "tasks.evaluation",
    "ClassificationMetrics": "tasks.classification_metrics",
    "Clip": "clip",
    "Detection": "tasks.detection",
    "EmbedResult": "tasks.index",
    "EncodedBatch": "streaming",
    "Failure": "streaming",
    "Hit": "tasks.hits",
    "ImageError": "processing",
    "Index": "tasks.index",
    "IndexChangedError": "tasks.index",
    "IndexInUseError": "tasks.writer",
    "SearchResult": "tasks.search",
    "SimilarityMatrix": "tasks.similarity_matrix",
    "TextConfig": "config",
    "VisionConfig": "config",
    "checkpoints": "checkpoints",
    "classify": "tasks.zero_shot",
    "config": "config",
    "cosine_similarity": "similarity",
    "detect": "tasks.detection",
    "embed_folder": "tasks.index",
    "enable_compilation_cache": "compilation_cache",
    "evaluate_linear_probe": "tasks.evaluation",
    "evaluate_zero_shot": "tasks.evaluation",
    "load": "clip",
    "losses": "losses",
    "nn": "nn",
    "plotting": "plotting",
    "processing": "processing",
    "reference": "reference",
    "search": "tasks.search",
    "similarity": "similarity",
    "similarity_matrix": "tasks.similarity_matrix",
    "zero_shot_classifier": "tasks.zero_shot",
}

__all__ = [
    "CLIPConfig",
    "CheckpointError",
    "Classification",
    "ClassificationEvaluation",
    "ClassificationMetrics",
    "Clip",
    "Detection",
    "EmbedResult",
    "EncodedBatch",
    "Failure",
    "Hit",
    "ImageError",
    "Index",
    "IndexChangedError",
    "IndexInUseError",
    "SearchResult",
    "SimilarityMatrix",
    "TextConfig",
    "VisionConfig",
    "checkpoints",
    "classify",
    "config",
    "cosine_similarity",
    "detect",
    "embed_folder",
    "enable_compilation_cache",
    "evaluate_linear_probe",
    "evaluate_zero_shot",
    "load",
    "losses",
    "nn",
    "plotting",
    "processing",
    "reference",
    "search",
    "similarity",
    "similarity_matrix",
    "zero_shot_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'jaxclip' has no attribute {name!r}")
    module = importlib.import_module(f"jaxclip.{_EXPORTS[name]}")
    return module if _EXPORTS[name] == name else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
