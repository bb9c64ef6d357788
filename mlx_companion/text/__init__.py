"""Text in, batches out: data files, chat templates with masks, length-bucketed batches.

records   files of chat, prompt/completion and text -> `Sample`
encode    `Sample` -> tokens and the mask of what is trained on
batches   encoded samples -> padded batches, reshuffled each epoch
"""

from mlx_companion.text.batches import Batch, LengthBuckets, collate
from mlx_companion.text.encode import Encoded, EncodeReport, encode_sample, encode_samples
from mlx_companion.text.records import Message, ReadReport, Sample, iter_samples, read_samples

__all__ = [
    "Batch",
    "EncodeReport",
    "Encoded",
    "LengthBuckets",
    "Message",
    "ReadReport",
    "Sample",
    "collate",
    "encode_sample",
    "encode_samples",
    "iter_samples",
    "read_samples",
]
