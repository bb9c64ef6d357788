"""Text in, batches out: data files, chat templates with masks, length-bucketed batches.

records   files of chat, prompt/completion and text -> `Sample`
encode    `Sample` -> tokens and the mask of what is trained on
batches   encoded samples -> padded batches, reshuffled each epoch
packed_samples  encoded samples -> packed rows without padding
streaming data sets larger than memory, encoded once to the disk
byte_text text as bytes, the vocabulary of byte-level models
documents long texts -> one flat array of ids
packing   that array -> rows of one length, for byte and for token models
"""

from mlx_companion.text.batches import Batch, LengthBuckets, collate
from mlx_companion.text.documents import FlatText, flatten, read_documents
from mlx_companion.text.encode import Encoded, EncodeReport, encode_sample, encode_samples
from mlx_companion.text.packed_samples import PackedRow, PackedSamples
from mlx_companion.text.packing import PackedBatch, PackedRows
from mlx_companion.text.records import Message, ReadReport, Sample, iter_samples, read_samples
from mlx_companion.text.sources import RowSource
from mlx_companion.text.streaming import StoredRows, TokenStore, store_samples

__all__ = [
    "Batch",
    "EncodeReport",
    "Encoded",
    "FlatText",
    "LengthBuckets",
    "Message",
    "PackedBatch",
    "PackedRow",
    "PackedRows",
    "PackedSamples",
    "ReadReport",
    "RowSource",
    "Sample",
    "StoredRows",
    "TokenStore",
    "collate",
    "encode_sample",
    "encode_samples",
    "flatten",
    "iter_samples",
    "read_documents",
    "read_samples",
    "store_samples",
]
