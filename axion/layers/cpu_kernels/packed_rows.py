"""Rows of a weight that oneDNN has packed: of a step's tokens, their embeddings."""

from __future__ import annotations

from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel

_FEW = 8192  # words that one thread has read before another has begun
_gather = parallel(".compiled.packed_rows:gather", integers=6)


def rows(view: Tensor, indices: Tensor) -> Tensor:
    """`[n]` of them, int64, as words of 32 bits, `[n, num_words]`.

    Args:
        view: `[num_rows / block, num_words, block]`, as `axion.layers.onednn.rows_view` gives it.
        indices: below `num_rows`.
    """
    num_blocks, num_words, block = view.shape
    indices = indices.contiguous()
    out = view.new_empty(len(indices), num_words)
    kernel = _gather(block)
    compute = kernel if out.numel() > _FEW else kernel.alone
    compute(
        out.data_ptr(),
        view.data_ptr(),
        indices.data_ptr(),
        len(indices),
        num_blocks * block,
        num_words,
    )
    return out
