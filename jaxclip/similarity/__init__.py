"""How alike vectors are: measures that are right at the edges, differentiable everywhere, and a search by them.

    from jaxclip import similarity

    similarity.cosine_similarity(a, b)                  # (n, d), (m, d) → (n, m)
    similarity.cosine_similarity(a, b, paired=True)     # (n, d), (n, d) → (n,)
    similarity.top_k(queries, items, 10)                # the 10 nearest items of each query

All measures take float arrays of rows; a single vector `(d,)` has no axis in the result. float32 is computed at full
precision on every backend, float16 and bfloat16 are computed in and returned as float32. Each docstring states the
error and what happens to zero, huge and tiny vectors. `jaxclip.reference` has the same functions in float64 NumPy.

## Which measure when

| measure | when to use it | what it costs |
|---|---|---|
| `cosine_similarity`, `cosine_distance` | learned embeddings: **the default** | what the lengths may tell |
| `angular_distance` | as cosine; near directions, or a true metric wanted | time; it ranks as cosine does |
| `dot_product` | attention; unit vectors, of which it is the cosine | unnormalised, long vectors win |
| `euclidean_distance` (L2) | magnitude matters: pixels, diffusion | scale counts; poor in many dimensions |
| `squared_euclidean_distance`, of unit vectors | an index of L2: ‖â - b̂‖² = 2 - 2 cos θ | nothing: cosine ranking |
| `manhattan_distance` (L1) | sparse features, outliers | one large difference weighs little; slow |
| `mahalanobis_distance` | correlated features, anomaly detection | a covariance, from many samples |
| `jaxclip.nn.metric.LearnedMetric` | the right measure is unknown, labels are there | training; try cosine first |

The length of an embedding varies with layer scale, batch statistics or the length of a text, and says little of what it
stands for; the direction does. So cosine is what contrastive models are trained with and compared by.

**Functions of direction normalise, the others never do,** and say so in bold: a similarity matrix of vectors that
somebody forgot to normalise needs a function with "dot product" in its name. Normalise once for many comparisons:

>>> import jax, jax.numpy as jnp
>>> from jaxclip import similarity
>>> a, b = jax.random.normal(jax.random.key(0), (2, 3, 512))
>>> unit_a, unit_b = similarity.normalize(a), similarity.normalize(b)
>>> cosines = similarity.cosine_similarity(a, b)
>>> bool(jnp.abs(similarity.dot_product(unit_a, unit_b) - cosines).max() <= 3e-8)
True
>>> squared = similarity.squared_euclidean_distance(unit_a, unit_b)
>>> bool(jnp.abs(squared - (2 - 2 * cosines)).max() < 1e-6)
True

A temperature τ makes logits of cosines: a softmax over cos/τ is the sharper the lower τ is. `jaxclip.losses` has the
losses that are trained with it (SimCLR's, CLIP's, MoCo's), where cosine is the similarity of two views of an image, of
image and caption, of query and key.

## Semantic text search

Sentences whose embeddings point the same way mean the same (Sentence-BERT, arXiv 1908.10084). Embed the sentences once
(`clip.encode_text`), and a query each time; here eight numbers stand for 512:

>>> sentences = ["a dog runs on grass", "a puppy plays outside", "stock prices fell", "the market closed lower"]
>>> embeddings = jnp.array([[9., 2., 1., 0., 0., 1., 0., 1.],
...                         [8., 3., 0., 1., 0., 1., 1., 1.],
...                         [0., 1., 0., 1., 7., 8., 2., 0.],
...                         [1., 0., 1., 1., 8., 6., 3., 0.]])
>>> query = jnp.array([2., 0.5, 0.1, 0.1, 0., 0.3, 0.1, 0.2])      # "pets in the garden": short, and that is no matter
>>> found = similarity.top_k(query, embeddings, 2)
>>> [sentences[i] for i in found.indices.tolist()]
['a dog runs on grass', 'a puppy plays outside']

## Search at scale

`top_k` goes through the items in blocks and never holds all similarities. Items of unit length and a dot product give
cosine without normalising anew at each call, as in FAISS's `IndexFlatIP` and vector databases; items sharded over a
mesh are searched where they lie.

>>> items = similarity.normalize(jax.random.normal(jax.random.key(1), (20_000, 64)))
>>> queries = items[:3] + 0.05 * jax.random.normal(jax.random.key(2), (3, 64))
>>> similarity.top_k(queries, items, 5, metric="dot_product").indices[:, 0].tolist()
[0, 1, 2]

## Recommendation

Users and items embedded in one space. Cosine asks which items are of a user's taste; the dot product lets popular items
(long vectors) win:

>>> user = jnp.array([[1.0, 0.2, 0.0]])                            # likes jazz, some rock, no pop
>>> catalogue = ["jazz, hardly known", "jazz and rock, known", "pop, everywhere"]
>>> songs = jnp.array([[0.5, 0.1, 0.0], [1.0, 1.0, 0.0], [3.0, 1.0, 9.0]])
>>> [catalogue[i] for i in similarity.top_k(user, songs, 3, metric="cosine").indices[0].tolist()]
['jazz, hardly known', 'jazz and rock, known', 'pop, everywhere']
>>> [catalogue[i] for i in similarity.top_k(user, songs, 3, metric="dot_product").indices[0].tolist()]
['pop, everywhere', 'jazz and rock, known', 'jazz, hardly known']

## Anomaly detection

How many standard deviations from the mean, correlations accounted for. Both points are 2.8 from it in Euclidean terms;
only the second goes against the correlation of the two features:

>>> factor = similarity.covariance(jax.random.normal(jax.random.key(3), (500, 2)) @ jnp.array([[1.0, 0.9], [0.0, 0.4]]))
>>> points = jnp.array([[2.0, 2.0], [2.0, -2.0]])
>>> usual, unusual = similarity.mahalanobis_distance(points, jnp.zeros(2), factor).tolist()
>>> usual < 3 < 8 < unusual
True

Cosine came from information retrieval (Salton and McGill, 1983), where a document's length was the nuisance, by way of
word vectors (Mikolov et al., 2013); SimCLR (Chen et al., 2020) showed that unit length and temperature are both needed,
and CLIP (Radford et al., 2021) learns the temperature.
"""

from jaxclip.similarity.cosine import angular_distance, cosine_distance, cosine_similarity
from jaxclip.similarity.dot import dot_product
from jaxclip.similarity.euclidean import euclidean_distance, squared_euclidean_distance
from jaxclip.similarity.mahalanobis import CovarianceFactor, covariance, factor_covariance, mahalanobis_distance
from jaxclip.similarity.manhattan import manhattan_distance
from jaxclip.similarity.normalize import normalize
from jaxclip.similarity.top_k import TopK, top_k

__all__ = [
    "CovarianceFactor",
    "TopK",
    "angular_distance",
    "cosine_distance",
    "cosine_similarity",
    "covariance",
    "dot_product",
    "euclidean_distance",
    "factor_covariance",
    "mahalanobis_distance",
    "manhattan_distance",
    "normalize",
    "squared_euclidean_distance",
    "top_k",
]
